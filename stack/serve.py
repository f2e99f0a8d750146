"""`python -m stack.serve`: the whole product in the foreground until Ctrl-C.

Owns what the person at the terminal sees: the children's lines under their names, one block that says what runs where,
and a clear sentence when something cannot run.
"""

import contextlib
import signal
import sys
import threading
import time

from config.secrets import mask_secrets
from config.settings import Settings, SettingsError, load_settings
from stack.plan import Plan, StackError, make_plan
from stack.running import Stack

__all__ = ["main"]

_LOOK_S = 0.2
_TELL_EVERY_S = 5.0
_COLORS = {"web": "36", "worker": "35", "flower": "33", "protocols": "36", "server": "34", "twolane": "32"}


class _Terminal:
    """Prints whole lines, from any thread."""

    def __init__(self, *, plain: bool) -> None:
        self._lock = threading.Lock()
        self._plain = plain
        self._colored = sys.stdout.isatty()

    def line(self, name: str, text: str) -> None:
        """Print one line of a child under its name; a machine's lines go through as they are."""
        if not self._plain:
            name = name.ljust(7)
            text = f"\033[{_COLORS.get(name.strip(), '0')}m{name}\033[0m {text}" if self._colored else f"{name} {text}"
        # A terminal that went away must not keep the stack from stopping.
        with self._lock, contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def block(self, text: str) -> None:
        """Print several lines together."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()


class _Progress:
    """Says now and then what is waited for."""

    def __init__(self, terminal: _Terminal) -> None:
        self._terminal = terminal
        self._told_s = 0.0

    def __call__(self, passed_s: float, missing: str) -> None:
        if passed_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = passed_s
            self._terminal.line("twolane", f"waiting for {missing}, {passed_s:.0f} s so far")


def describe(plan: Plan, took_s: float) -> str:
    """Return the block that says what runs where."""
    settings = plan.settings
    password = plan.flower_password_file or "as set in TWOLANE_FLOWER_PASSWORD"
    server = mask_secrets(settings.redis_url)
    rows = [
        ("API", f"{plan.url}/v1"),
        ("API docs", f"{plan.url}/docs"),
        ("Console", f"{plan.url}/console"),
        *_list_protocols(plan),
        ("Flower", f"{plan.flower_url}   user {settings.flower_user}, password in {password}"),
        ("Redis", f"{server}   private, kept in {plan.server_folder}" if plan.private_server else server),
        ("Data", str(settings.data_dir)),
        ("Models", ", ".join(settings.models)),
    ]
    model = settings.models[0]
    return "\n".join(
        [
            *("", f"  Twolane is ready after {took_s:.1f} s.", ""),
            *(f"  {name:<9} {value}" for name, value in rows),
            *("", "  Try it:", f"    curl -s {plan.url}/v1/embeddings -H 'content-type: application/json' \\"),
            *(f'      -d \'{{"model": "{model}", "input": "hello"}}\'', "", "  Ctrl-C stops everything.", "", ""),
        ]
    )


def _list_protocols(plan: Plan) -> list[tuple[str, str]]:
    settings, host = plan.settings, plan.host
    rows = [
        ("WebSocket", f"ws://{host}:{settings.websocket_port}/v1/stream", settings.websocket_port),
        ("gRPC", f"{host}:{settings.grpc_port}", settings.grpc_port),
    ]
    return [(name, address) for name, address, port in rows if port]


class _Wish:
    """Whether the stack shall end; set by signals. No event: its lock may be held by the thread that is interrupted."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._come)

    def __call__(self) -> bool:
        return self.came

    def _come(self, *_: object) -> None:
        self.came = True


def _run(settings: Settings, terminal: _Terminal) -> None:
    stopping = _Wish()
    started_s = time.monotonic()
    plan = make_plan(settings)
    stack = Stack(plan, terminal.line, outlives_worker=True)
    try:
        stack.start()
        if stack.wait_until_ready(_Progress(terminal), stopping):
            terminal.block(describe(plan, time.monotonic() - started_s))
        while not stopping():
            stack.poll()
            time.sleep(_LOOK_S)
        terminal.line("twolane", "stopping: requests and chunks that were begun are finished first")
    finally:
        # A second Ctrl-C means: now.
        stopping.came = False
        stack.stop(hurry=stopping)
    terminal.line("twolane", "stopped")


def main() -> int:
    """Run until a signal; return the exit code."""
    try:
        settings = load_settings()
        _run(settings, _Terminal(plain=settings.log_format == "json"))
    except (StackError, SettingsError) as error:
        print(f"\nTwolane does not start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
