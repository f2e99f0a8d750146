"""What `embed` and `rerank` have in common: a corpus, where it goes, and what is said at the end.

Owns the words around a run; the run itself is `twolane.transfer.run`.
"""

import time
from dataclasses import dataclass

import typer

from twolane.cli.progress import showing
from twolane.cli.session import EXIT_FAILED_ITEMS, Session, ending
from twolane.client import Twolane
from twolane.corpus import Corpus
from twolane.errors import InputError
from twolane.requests import JobOptions
from twolane.transfer.checkpoint import Checkpoint
from twolane.transfer.rows import Columns
from twolane.transfer.run import Reading, transfer
from twolane.transfer.sinks import open_sink
from twolane.transfer.source import open_source

__all__ = ["Rows", "Wish", "carry_out"]

_COME_BACK = (
    "What was written stays, and queued jobs go on. The same command goes on from here; twolane jobs lists them."
)


@dataclass(frozen=True)
class Rows:
    """Which rows were asked for on the command line."""

    names: list[str]
    form: str | None
    sql: str | None
    where: str | None
    limit: int | None


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line."""

    rows: Rows
    target: str | None
    options: JobOptions
    columns: Columns
    overwrite: bool
    dry_run: bool
    part_rows: int

    def reading(self) -> Reading:
        """Return how the corpus is read.

        Raises:
            InputError: it is not there.
        """
        corpus, rows = Corpus(self.options, part_items=self.part_rows), self.rows
        source = open_source(*rows.names, form=rows.form, query=rows.sql)
        return Reading(source, self.columns, corpus, rows.limit, rows.where)


def carry_out(session: Session, wish: Wish) -> None:
    """Do what was asked for, and end with an exit code."""
    with ending(session, _COME_BACK), session.client() as client:
        if wish.dry_run:
            _estimate(session, client, wish)
            return
        if wish.target is None:
            raise InputError("say where the results go: --to FILE, or --dry-run")
        state = _run(session, client, wish, wish.target)
        if state.failed:
            raise typer.Exit(EXIT_FAILED_ITEMS)


def _run(session: Session, client: Twolane, wish: Wish, target: str) -> Checkpoint:
    begun_s = time.monotonic()
    sink = open_sink(target)
    with showing(session, wish.options.model) as show:
        state = transfer(client, wish.reading(), sink, show, overwrite=wish.overwrite)
    _tell_end(session, state, sink.name, time.monotonic() - begun_s)
    return state


def _tell_end(session: Session, state: Checkpoint, target: str, took_s: float) -> None:
    if session.as_json:
        names = ("model", "fingerprint", "dimension", "rows", "completed", "failed", "truncated", "tokens")
        facts = {name: getattr(state, name) for name in names}
        session.print_json({"done": {**facts, "to": target, "seconds": round(took_s, 3)}})
        return
    counts = {"failed": state.failed, "truncated": state.truncated}
    trouble = "".join(f", {count:,} {name}" for name, count in counts.items() if count)
    done = f"{state.rows:,} rows{trouble}, {state.tokens:,} tokens, in {target} after {took_s:,.1f} s."
    session.errors.print(f"[green]Done:[/green] {done}", highlight=False, soft_wrap=True)


def _estimate(session: Session, client: Twolane, wish: Wish) -> None:
    """Say what the corpus would cost. It is read to its end, and each part is sent to be measured, not to be kept."""
    rows = tokens = size_bytes = 0
    seconds: float | None = 0.0
    for portion in wish.reading().portions():
        estimate = client.jobs.measure(portion.part.lines, wish.options)
        rows, tokens = rows + estimate.items, tokens + estimate.tokens
        size_bytes += len(portion.part.lines)
        seconds = None if seconds is None or estimate.estimated_s is None else seconds + estimate.estimated_s
    if session.as_json:
        session.print_json({"estimate": {"rows": rows, "tokens": tokens, "bytes": size_bytes, "estimated_s": seconds}})
        return
    lasting = f"about {seconds:,.0f} s" if seconds is not None else "a time that is known when a worker is ready"
    session.output.print(f"{rows:,} rows, {tokens:,} tokens, {size_bytes:,} bytes; {lasting}", highlight=False)
