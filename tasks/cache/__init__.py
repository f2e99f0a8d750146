"""Values that were computed before, and the engine that uses them."""
