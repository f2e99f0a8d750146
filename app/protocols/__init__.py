"""WebSocket and gRPC: the same API over other protocols than HTTP, in a process of its own."""
