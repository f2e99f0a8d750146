"""Front doors, independent of each other."""
