"""The peers: each library or server as its own documentation shows it, and nothing patched for speed or against it."""
