"""One run from a corpus into a sink, that may be ended at any moment and given again.

Owns the order of things: a part is sent, waited for, fetched, and written together with the checkpoint behind it. What
the checkpoint covers is read once more and compared, but neither sent nor written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from twolane.answers import Job
from twolane.client import Twolane
from twolane.corpus import Corpus, EmbeddedCorpus, Part
from twolane.errors import InputError
from twolane.flow import run_parts
from twolane.transfer.checkpoint import Checkpoint, Plan, extend_chain, refuse_changed_input
from twolane.transfer.filtering import filter_rows
from twolane.transfer.portions import Portion, cut_rows
from twolane.transfer.results import fetch_table
from twolane.transfer.rows import Columns, prepare
from twolane.transfer.sinks import Sink
from twolane.transfer.source import Source

__all__ = ["Progress", "Reading", "make_plan", "transfer"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: rows of all runs together, tokens and seconds of this one alone."""

    rows: int
    total: int | None
    failed: int
    truncated: int
    tokens: int
    tokens_per_s: float | None
    job_id: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How a corpus is read and cut; `where`: only rows that fulfil this, `limit`: only so many of those."""

    source: Source
    columns: Columns
    corpus: Corpus
    limit: int | None = None
    where: str | None = None

    def portions(self) -> Iterator[Portion]:
        """Yield the corpus as parts."""
        needed = self.columns.needed
        if self.where is None:
            batches = self.source.batches(needed)
        else:
            batches = filter_rows(self.source.batches(), self.where, needed)
        return cut_rows(prepare(batches, self.columns, self.limit), self.corpus)

    @property
    def total(self) -> int | None:
        """How many rows there will be, where it is known before they are read."""
        if self.source.rows is None or self.where is not None:
            return None
        return self.source.rows if self.limit is None else min(self.source.rows, self.limit)


def make_plan(client: Twolane, reading: Reading) -> Plan:
    """Return what a run of this corpus does; asks the server for the model.

    Raises:
        ApiError: there is no such model.
    """
    corpus, columns = reading.corpus, reading.columns
    model = client.model(corpus.options.model)
    dimension = (corpus.options.dimensions or model.dimension or 0) if corpus.options.type == "embeddings" else 0
    described: dict[str, object] = {
        "text": columns.template or columns.text,
        "query": columns.query,
        "id": columns.id,
        "keep": columns.keep,
        "keep_text": columns.keep_text,
        "skip_null": columns.skip_null,
        "limit": reading.limit,
    }
    if reading.where is not None:
        described["where"] = reading.where
    cut = (corpus.part_items, corpus.part_bytes)
    return Plan(model.id, corpus.options.as_query(), described, dimension, *cut, source=reading.source.name)


def transfer(
    client: Twolane, reading: Reading, sink: Sink, report: Callable[[Progress], None], *, overwrite: bool = False
) -> Checkpoint:
    """Bring a corpus into a sink, or what is left of it, and return the state at the end.

    Args:
        client: of the server that computes.
        reading: the corpus.
        sink: closed at the end.
        report: called with each state.
        overwrite: begin anew, whatever is in the sink.

    Raises:
        TwolaneError: it could not be done to its end; what was written stays, and the next run goes on behind it.
    """
    try:
        return _Run(client, reading, sink, report).run(overwrite=overwrite)
    finally:
        sink.close()


class _Run:
    def __init__(self, client: Twolane, reading: Reading, sink: Sink, report: Callable[[Progress], None]) -> None:
        self._client = client
        self._reading = reading
        self._sink = sink
        self._report = report
        self._plan = make_plan(client, reading)
        self._state = self._begun = Checkpoint.begin(self._plan)
        self._waiting: dict[int, Portion] = {}

    def run(self, *, overwrite: bool) -> Checkpoint:
        self._state = self._begun = self._sink.open(self._plan, overwrite=overwrite)
        self._watch(EmbeddedCorpus())
        for part, job in run_parts(self._client, self._reading.corpus, self._parts(), self._watch):
            self._write(self._waiting.pop(part.number), job)
        if self._state.rows == 0:
            raise InputError(f"{self._reading.source.name} has no rows")
        self._sink.finish(self._state)
        return self._state

    def _parts(self) -> Iterator[Part]:
        """Yield what is left to do, and remember its rows until the results are there."""
        chain, known = "", 0
        for portion in self._reading.portions():
            if known < self._begun.parts:
                chain, known = extend_chain(chain, portion.digest), known + 1
                if known == self._begun.parts and chain != self._begun.chain:
                    break
            elif self._begun.finished:
                # There is more than what the finished output was made of.
                break
            else:
                self._waiting[portion.part.number] = portion
                yield portion.part
        else:
            if known == self._begun.parts:
                return
        raise refuse_changed_input(self._reading.source.name)

    def _write(self, portion: Portion, job: Job) -> None:
        state, plan = self._state, self._plan
        state.require_fingerprint(job.fingerprint)
        keep_text = self._reading.columns.keep_text
        table = fetch_table(self._client, portion, job, plan.dimension, keep_text=keep_text)
        after = msgspec.structs.replace(
            state,
            fingerprint=state.fingerprint or job.fingerprint,
            parts=state.parts + 1,
            rows=state.rows + portion.part.items,
            chain=extend_chain(state.chain, portion.digest),
            completed=state.completed + job.counts.completed,
            failed=state.failed + job.counts.failed,
            truncated=state.truncated + job.counts.truncated,
            tokens=state.tokens + job.tokens,
        )
        self._sink.write(table, after)
        self._state = after

    def _watch(self, done: EmbeddedCorpus) -> None:
        begun = self._begun
        self._report(
            Progress(
                rows=begun.rows + done.completed + done.failed,
                total=self._reading.total,
                failed=begun.failed + done.failed,
                truncated=begun.truncated + done.truncated,
                tokens=done.tokens,
                tokens_per_s=done.tokens_per_s,
                job_id=done.job_id,
            )
        )
