"""The Celery task of the bulk lanes: take a chunk, compute it, complete it."""
