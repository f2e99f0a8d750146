"""What a model folder holds, read from its own files."""
