"""The device side: the only room where torch may be imported."""
