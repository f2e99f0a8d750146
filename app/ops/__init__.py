"""What operators and browsers read: health, metrics, pages, the list of errors."""
