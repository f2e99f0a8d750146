"""The synchronous endpoints: embeddings, rerank and models."""
