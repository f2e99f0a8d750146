"""`python -m app.protocols`: serve WebSocket and gRPC, those that the settings switch on, until SIGTERM or SIGINT."""

import logging
import signal
import sys
import threading
from typing import Protocol

from flask import Flask
from pydantic import ValidationError

from app import create_app
from app.http.request_ids import configure_request_logging
from config.keyring import KeyringError, check_exposure
from config.settings import Settings, SettingsError, load_settings
from tasks.errors import ConfigError

_log = logging.getLogger(__name__)


class _Server(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


def _open_servers(app: Flask, settings: Settings) -> list[_Server]:
    """Return what is switched on; only that is imported."""
    servers: list[_Server] = []
    if settings.websocket_port:
        from app.protocols.websocket import WebSocketServer  # noqa: PLC0415 - see above

        servers.append(WebSocketServer(app, settings))
        _log.info("WebSocket on %s:%d", settings.host, settings.websocket_port)
    if settings.grpc_port:
        from app.protocols.rpc_server import RpcServer  # noqa: PLC0415 - see above

        servers.append(RpcServer(app, settings))
        _log.info("gRPC on %s:%d", settings.host, settings.grpc_port)
    return servers


def _serve(settings: Settings) -> None:
    check_exposure(settings)
    if not settings.redis_url:
        raise ConfigError("REDIS_URL is empty: name a running server, or let `make serve` start one")
    configure_request_logging(settings, "protocols")
    # It has a line for each connection.
    logging.getLogger("websockets").setLevel(logging.WARNING)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    app = create_app(settings)
    live = app.extensions["twolane"]
    servers = _open_servers(app, settings)
    if not servers:
        # A Procfile starts it anyway, and ends everything when one of its processes ends.
        _log.info("neither TWOLANE_WEBSOCKET_PORT nor TWOLANE_GRPC_PORT is set: nothing is served here")
    live.activity.start()
    live.counters.start()
    for server in servers:
        server.start()
    stopping.wait()
    for server in servers:
        server.stop()
    live.counters.stop()
    live.close()


def _main() -> int:
    try:
        _serve(load_settings())
    except (ConfigError, KeyringError, SettingsError, ValidationError, OSError) as error:
        print(f"WebSocket and gRPC are not served: {error}", file=sys.stderr)  # noqa: T201 - for the operator
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
