"""The products under test, started as processes, with the models that they serve."""
