"""The progress of a run: a bar on a terminal, lines of JSON for a machine, now and then a line for a log.

Owns what of the run's state is shown, and how often.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from twolane.cli.session import Session
from twolane.transfer.run import Progress as State

__all__ = ["showing"]

_JSON_EVERY_S = 1.0
_LINE_EVERY_S = 10.0


@contextmanager
def showing(session: Session, title: str) -> Iterator[Callable[[State], None]]:
    """Give a function that shows the state of a run."""
    if session.as_json or not session.errors.is_terminal:
        yield _Lines(session, title).show
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[trouble]}"),
    )
    with Progress(*columns, console=session.errors) as progress:
        task = progress.add_task(title, total=None, speed="", trouble="")
        begun = _Rate()

        def show(state: State) -> None:
            speed = f"{begun.rows_per_s(state):,.0f} rows/s"
            if state.tokens_per_s:
                speed += f"  {state.tokens_per_s:,.0f} tokens/s"
            progress.update(task, completed=state.rows, total=state.total, speed=speed, trouble=describe_trouble(state))

        yield show


class _Rate:
    """Rows per second since the first state, which has the rows of earlier runs."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def rows_per_s(self, state: State) -> float:
        now_s = time.monotonic()
        if self._first is None:
            self._first = (now_s, state.rows)
        begun_s, rows = self._first
        return (state.rows - rows) / (now_s - begun_s) if now_s > begun_s else 0.0


class _Lines:
    def __init__(self, session: Session, title: str) -> None:
        self._session = session
        self._title = title
        self._every_s = _JSON_EVERY_S if session.as_json else _LINE_EVERY_S
        self._next_s = 0.0
        self._rate = _Rate()

    def show(self, state: State) -> None:
        rate = self._rate.rows_per_s(state)
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + self._every_s
        if self._session.as_json:
            self._session.print_json({"progress": state, "rows_per_s": round(rate, 1)})
        else:
            of = f" of {state.total:,}" if state.total is not None else ""
            trouble = describe_trouble(state)
            self._session.errors.print(
                f"{self._title}: {state.rows:,}{of} rows, {rate:,.0f} rows/s {trouble}".rstrip(), highlight=False
            )


def describe_trouble(state: State) -> str:
    """Return what is not as it should be: failed and truncated rows."""
    parts = []
    if state.failed:
        parts.append(f"[red]{state.failed:,} failed[/red]")
    if state.truncated:
        parts.append(f"[yellow]{state.truncated:,} truncated[/yellow]")
    return ", ".join(parts)
