"""HTTP itself: bodies, errors, compression, request IDs, OpenAPI. Knows no feature."""
