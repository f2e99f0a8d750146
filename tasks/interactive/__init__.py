"""Interactive calls over Redis lists: client in the web process, server in the worker, the protocol between."""
