"""A server that answers every request with the same 8 KB at once: what the load generator can do at most.

`python -m benchmarks.load.trivial_server PORT`. Owns nothing but its sockets.
"""

import selectors
import socket
import sys

__all__ = ["serve"]

_BODY = b"x" * 8192  # about the size of one 384-dimensional embedding as JSON
_ANSWER = f"HTTP/1.1 200 OK\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY


def serve(port: int) -> None:
    """Answer every read with one answer, until killed; good enough for clients that never pipeline."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket):
                _answer(selector, key.fileobj)


def _answer(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    try:
        if connection.recv(65536):
            connection.sendall(_ANSWER)
            return
    except OSError:
        pass
    selector.unregister(connection)
    connection.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
