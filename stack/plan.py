"""What belongs to a stack: which programs, on which ports, with which environment.

Owns the choice of ports and the passwords of Flower and the private server. Starts nothing.
"""

import os
import secrets
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from config.catalog import load_catalog
from config.keyring import KeyringError, check_exposure
from config.settings import Settings
from config.supervisor import Program
from stack.embedded_redis import free_port

__all__ = ["Plan", "StackError", "make_plan"]

_HOST = "127.0.0.1"


class StackError(RuntimeError):
    """The stack cannot start like this; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything will be.

    Attributes:
        settings: with the ports, the folder and the server that were chosen filled in.
        private_server: whether the stack runs its own server.
        flower_password: as it must be typed.
        flower_password_file: where that is kept; None when it came from the settings.
    """

    settings: Settings
    private_server: bool
    flower_password: str
    flower_password_file: Path | None

    @property
    def url(self) -> str:
        """Address of the web server."""
        return f"http://{self.host}:{self.settings.port}"

    @property
    def host(self) -> str:
        """The address under which this machine reaches the web server, as URLs have it."""
        host = self.settings.host
        reached = _HOST if host in {"0.0.0.0", "::"} else host  # noqa: S104 - compared
        return f"[{reached}]" if ":" in reached else reached

    @property
    def flower_url(self) -> str:
        """Address of Flower."""
        return f"http://{_HOST}:{self.settings.flower_port}"

    @property
    def server_folder(self) -> Path:
        """Where the private server keeps its data."""
        return self.settings.data_dir / "server"

    def programs(self) -> list[Program]:
        """Return what runs beside the server."""
        environment = self._environment()
        flower = {
            # By the environment and not as an argument: every user of the machine can read arguments.
            "FLOWER_BASIC_AUTH": f"{self.settings.flower_user}:{self.flower_password}",
            "FLOWER_ADDRESS": _HOST,
            "FLOWER_PORT": str(self.settings.flower_port),
            # The arguments of a ticket are its job and its chunk.
            "FLOWER_TASKS_COLUMNS": "name,args,state,received,runtime,worker",
            "FLOWER_LOGGING": "error",
        }
        python = sys.executable
        more = self.settings.websocket_port or self.settings.grpc_port
        protocols = [Program("protocols", [python, "-m", "app.protocols"], environment)] if more else []
        return [
            Program("web", [python, "-m", "app"], environment),
            *protocols,
            Program("worker", [python, "-m", "workers.launch"], environment),
            Program(
                "flower",
                [python, "-m", "celery", "--app", "tasks", "flower"],
                {**environment, **flower},
                signal.SIGKILL,
            ),
        ]

    def _environment(self) -> dict[str, str]:
        here = str(Path(__file__).resolve().parent.parent)
        return {
            **_as_variables(self.settings),
            "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        }


def _as_variables(settings: Settings) -> dict[str, str]:
    """Return all settings as environment variables, so that every process decides by the very same ones."""
    fields = settings.model_dump(mode="json", exclude={"flower_password"})
    return {f"TWOLANE_{name.upper()}": _as_text(value) for name, value in fields.items()}


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value)


def make_plan(settings: Settings) -> Plan:
    """Choose what the settings leave open. Makes the data folder and the passwords in it.

    Raises:
        StackError: a port that was asked for is taken, a model is in no catalogue, the keys file is bad, or the server
            would be open to other machines without one.
    """
    _check_models(settings)
    try:
        check_exposure(settings)
    except KeyringError as error:
        raise StackError(str(error)) from error
    data_dir = settings.data_dir.resolve()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"TWOLANE_DATA_DIR={data_dir} cannot be used: {error.strerror or error}") from error
    port = _check_port(settings.host, settings.port, "PORT") or free_port()
    for name in ("websocket_port", "grpc_port"):
        _check_port(settings.host, getattr(settings, name), f"TWOLANE_{name.upper()}")
    flower_port = _check_port(_HOST, settings.flower_port, "TWOLANE_FLOWER_PORT") or free_port()
    chosen: dict[str, object] = {"data_dir": data_dir, "port": port, "flower_port": flower_port}
    chosen["flower_url"] = settings.flower_url or f"http://{_HOST}:{flower_port}"
    if not settings.redis_url:
        password = _kept_password(data_dir / "redis-password")
        chosen["redis_url"] = f"redis://:{password}@{_HOST}:{free_port()}/0"
    password, file = settings.flower_password.get_secret_value(), None
    if not password:
        file = data_dir / "flower-password"
        password = _kept_password(file)
    return Plan(settings.model_copy(update=chosen), not settings.redis_url, password, file)


def _check_models(settings: Settings) -> None:
    try:
        catalog = load_catalog(settings.catalog_file, settings.models)
    except (OSError, ValueError) as error:
        raise StackError(f"the catalogue file {settings.catalog_file} cannot be used: {error}") from error
    unknown = [catalog.describe_unknown(name) for name in settings.models if catalog.find(name) is None]
    if unknown:
        raise StackError(f"TWOLANE_MODELS: {'; '.join(unknown)}")


def _check_port(host: str, port: int, setting: str) -> int:
    if port:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                why = error.strerror or str(error)
                raise StackError(
                    f"cannot use {host}:{port} ({why}); choose another port: {setting}=<number>"
                ) from error
    return port


def _kept_password(file: Path) -> str:
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            target.write(secrets.token_urlsafe(16) + "\n")
    return file.read_text("utf-8").strip()
