"""What a unit of work is, where it is kept and how it travels."""
