"""What all commands share: the server, the way to answer, and the end with an exit code.

Owns the exit codes and the rule that results go to standard output and everything else to standard error.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import typer
from rich.console import Console

from twolane.client import Twolane
from twolane.errors import ApiError, InputError, JobEnded, MissingExtra, ServerUnreachable, SinkError, TwolaneError

__all__ = ["EXIT_FAILED_ITEMS", "EXIT_INTERRUPTED", "Session", "ending", "session_of"]

EXIT_ERROR, EXIT_USAGE = 1, 2
EXIT_INPUT, EXIT_SINK, EXIT_SERVER, EXIT_FAILED_ITEMS, EXIT_INTERRUPTED = 3, 4, 5, 6, 130
_CODES: dict[type[TwolaneError], int] = {
    InputError: EXIT_INPUT,
    SinkError: EXIT_SINK,
    ServerUnreachable: EXIT_SERVER,
    ApiError: EXIT_SERVER,
    JobEnded: EXIT_SERVER,
    MissingExtra: EXIT_USAGE,
}


@dataclass(frozen=True)
class Session:
    """One command.

    Attributes:
        url, key, wait_s: of the server: where, by which key, and how long it is waited for while it is away.
        as_json: answer in JSON.
    """

    url: str | None
    key: str | None
    wait_s: float
    as_json: bool
    output: Console
    errors: Console

    @contextlib.contextmanager
    def client(self) -> Iterator[Twolane]:
        """Open a client of the server."""
        try:
            client = Twolane(self.url, self.key, retry_for_s=self.wait_s)
        except ValueError as error:
            raise InputError(str(error)) from None
        with client:
            yield client

    def print_json(self, value: Any) -> None:
        """Print one line of JSON."""
        self.output.out(msgspec.json.encode(value).decode(), highlight=False)


def session_of(context: typer.Context) -> Session:
    """Return the session that the program's own options made."""
    session: Session = context.obj
    return session


@contextlib.contextmanager
def ending(session: Session, come_back: str = "") -> Iterator[None]:
    """End the command with a sentence and an exit code where its work cannot be done.

    Args:
        session: of the command.
        come_back: what is said when Ctrl-C ends it.
    """
    try:
        yield
    except TwolaneError as error:
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), EXIT_ERROR)
        _report(session, str(error), code)
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        _report(session, f"stopped. {come_back}".strip(), EXIT_INTERRUPTED)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _report(session: Session, message: str, code: int) -> None:
    if session.as_json:
        session.print_json({"error": {"message": message, "exit_code": code}})
    else:
        session.errors.print(f"[red]twolane:[/red] {_plain(message)}", soft_wrap=True, highlight=False)


def _plain(message: str) -> str:
    """Return a message whose brackets are not read as markup."""
    return message.replace("[", r"\[")
