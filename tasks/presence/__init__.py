"""Which workers are ready, and what is in Redis."""
