"""Two trees or devices side by side, run by hand."""
