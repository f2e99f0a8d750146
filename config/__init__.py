"""What is decided before the first request: settings, model cards, metric names, logging."""
