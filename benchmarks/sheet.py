"""What was measured: rows of samples, one sample a round, and the medians and ratios that are made of them.

Owns the arithmetic of results. How they are shown is `benchmarks.report`, what they should be `benchmarks.goals`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

__all__ = ["Better", "Row", "Sheet"]

Better = Literal["higher", "lower", ""]


@dataclass(slots=True)
class Row:
    """One measured quantity of one subject.

    Attributes:
        suite: the group of measurements that it belongs to.
        subject: what was measured: ours or a peer, and how it was set up.
        metric: the quantity, with the conditions that it was measured under.
        unit: its unit.
        better: which direction is better; empty for facts.
        samples: one value a round.
        note: what a reader must know to read it right.
    """

    suite: str
    subject: str
    metric: str
    unit: str
    better: Better = ""
    samples: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return median(self.samples)

    def as_json(self) -> dict[str, Any]:
        """Return the row as it stands in the results file."""
        names = ("suite", "subject", "metric", "unit", "note")
        return {
            **{name: getattr(self, name) for name in names},
            "better": self.better,
            "median": _rounded(self.median),
            "samples": [_rounded(sample) for sample in self.samples],
        }


class Sheet:
    """All rows of a run, in the order in which they were first measured."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Row] = {}
        self.left_out: list[str] = []

    def add(
        self, place: tuple[str, str], metric: str, value: float, unit: str, better: Better = "", note: str = ""
    ) -> None:  # - a row has six parts
        """Add one sample; `place` is suite and subject. What is not a number is written down as left out."""
        suite, subject = place
        if not math.isfinite(value):
            self.leave_out(f"{suite}, {subject}, {metric}", "too little happened to measure it")
            return
        row = self._rows.setdefault((suite, subject, metric), Row(suite, subject, metric, unit, better, note=note))
        row.samples.append(float(value))

    def take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of a results file."""
        for row in rows:
            for value in row["samples"]:
                place, better = (row["suite"], row["subject"]), row.get("better", "")
                self.add(place, row["metric"], value, row["unit"], better, row["note"])

    def leave_out(self, what: str, why: object) -> None:
        """Write down what could not be measured, so that a missing row is never silent."""
        self.left_out.append(f"{what}: {str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__}")

    def rows(self, suite: str | None = None) -> Iterator[Row]:
        """Yield the rows of a suite, or all."""
        for row in self._rows.values():
            if suite in {None, row.suite}:
                yield row

    def suites(self) -> list[str]:
        """Return the suites that have rows, in order."""
        return list(dict.fromkeys(row.suite for row in self._rows.values()))

    def find(self, suite: str, subject: str, metric: str) -> Row | None:
        """Return a row, or None if it was not measured."""
        return self._rows.get((suite, subject, metric))

    def value(self, suite: str, subject: str, metric: str) -> float | None:
        """Return the median of a row, or None if it was not measured."""
        row = self.find(suite, subject, metric)
        return row.median if row else None

    def ratio(self, over: Row | None, under: Row | None) -> float | None:
        """Return the median of the ratios of each round: both sides of a round saw the same machine.

        Rows with different numbers of rounds are compared by their medians.
        """
        if over is None or under is None or under.median == 0:
            return None
        if len(over.samples) == len(under.samples) and all(under.samples):
            return median(a / b for a, b in zip(over.samples, under.samples, strict=True))
        return over.median / under.median


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
