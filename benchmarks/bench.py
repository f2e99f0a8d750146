"""What every suite is given: how much to measure, with which text, on which cores, and where to write it down.

Owns the sizes of a full and a quick run. What is measured is each suite's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from benchmarks.corpus import Corpus, gather
from benchmarks.load.loadgen import LoadGenerator
from benchmarks.machine import Cores
from benchmarks.peers.environment import PeerMissing
from benchmarks.sheet import Sheet

__all__ = ["FULL", "QUICK", "Bench", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how often everything is measured, taking turns.
        passages: passages that every contender embeds.
        job_passages: passages of the long job; a short one shows little but its start.
        hold_s: seconds of one closed-loop load.
        pace_s: seconds of one load at a fixed rate.
        clients: numbers of clients of the interactive lane.
        fake_items: items of the job with the fake model.
        upload_lines: lines of the large upload.
        memory_texts: texts that a worker computes while its memory is watched.
        shape_passages: passages for the base-sized models; the large ones get a quarter.
    """

    rounds: int
    passages: int
    job_passages: int
    hold_s: float
    pace_s: float
    clients: tuple[int, ...]
    fake_items: int
    upload_lines: int
    memory_texts: int
    shape_passages: int

    @property
    def quick(self) -> bool:
        """Whether its figures are only good for finding mistakes."""
        return self.passages < FULL.passages


FULL = Plan(
    rounds=3,
    passages=1200,
    job_passages=6000,
    hold_s=8.0,
    pace_s=40.0,
    clients=(1, 16, 64, 256),
    fake_items=100_000,
    upload_lines=200_000,
    memory_texts=200_000,
    shape_passages=192,
)
QUICK = Plan(
    rounds=1,
    passages=240,
    job_passages=1800,
    hold_s=2.0,
    pace_s=12.0,
    clients=(1, 64),
    fake_items=20_000,
    upload_lines=50_000,
    memory_texts=4_000,
    shape_passages=32,
)


@dataclass
class Bench:
    """One run.

    Attributes:
        device: `cpu`, or `cuda` where a GPU is: then everybody is measured on the first one.
    """

    plan: Plan
    cores: Cores
    sheet: Sheet = field(default_factory=Sheet)
    with_peers: bool = True
    device: str = "cpu"
    say: Callable[[str], None] = print

    @cached_property
    def corpus(self) -> Corpus:
        """The text of this run."""
        return gather(max(self.plan.passages, self.plan.job_passages))

    @property
    def passages(self) -> tuple[str, ...]:
        """The passages that every contender embeds."""
        return self.corpus.passages[: self.plan.passages]

    @cached_property
    def load(self) -> LoadGenerator:
        """The load generator, on the cores of the asking side."""
        return LoadGenerator(self.cores.client)

    def try_start(self, what: str, start: Callable[[], Any]) -> Any:
        """Start a contender; None, and a line in the results, when it cannot run here."""
        self.say(f"  starting {what}")
        try:
            return start()
        except (PeerMissing, RuntimeError, OSError) as error:
            self.sheet.leave_out(what, error)
            self.say(f"  left out: {what}: {error}")
            return None

    def close(self) -> None:
        """End the load generator."""
        if "load" in self.__dict__:
            self.load.close()
