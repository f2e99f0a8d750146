"""What the project wants its figures to be, and whether a run reached it. Recorded, never asserted.

Owns the targets and how each is worked out from the sheet; a target whose rows were not measured is left out.
"""

from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.sheet import Sheet

__all__ = ["GOALS", "Goal", "Verdict", "judge"]

OURS, ENGINE, JOB = "Twolane", "Twolane engine", "Twolane job, end to end"

# Suite, subject and metric of a row.
Find = tuple[str, str, str]
Bound = Literal["at least", "at most"]
AT_LEAST: Bound = "at least"
AT_MOST: Bound = "at most"


@dataclass(frozen=True, slots=True)
class Goal:
    """One target: the value is `over` by `under`, or `over` alone, and has to be at least or at most the limit."""

    text: str
    bound: Bound
    limit: float
    over: Find
    under: Find | None = None
    unit: str = "x"

    def value(self, sheet: Sheet) -> float | None:
        """Return what was measured, or None."""
        if self.under is None:
            return sheet.value(*self.over)
        return sheet.ratio(sheet.find(*self.over), sheet.find(*self.under))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what became of it."""

    goal: Goal
    value: float

    @property
    def text(self) -> str:
        """What is compared."""
        return self.goal.text

    @property
    def met(self) -> bool:
        """Whether the run reached it."""
        return self.value >= self.goal.limit if self.goal.bound == "at least" else self.value <= self.goal.limit

    @property
    def measured(self) -> str:
        """The value with its unit."""
        return _show(self.value, self.goal.unit)

    @property
    def asked(self) -> str:
        """The limit with its unit."""
        return f"{self.goal.bound} {_show(self.goal.limit, self.goal.unit)}"

    @property
    def words(self) -> str:
        """Met, or missed and by how much of the limit."""
        if self.met:
            return "met"
        return f"missed by {abs(self.value / self.goal.limit - 1):.2g}" if self.goal.limit else "missed"

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in the results file."""
        goal = self.goal
        return {
            "target": goal.text,
            "bound": goal.bound,
            "limit": goal.limit,
            "unit": goal.unit,
            "value": self.value,
            "met": self.met,
        }


def judge(sheet: Sheet) -> list[Verdict]:
    """Compare a run with the targets."""
    return [Verdict(goal, value) for goal in GOALS if (value := goal.value(sheet)) is not None]


def _show(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.7f}" if unit == "cosine" else f"{value:.3g}"
    return f"{shown}{unit}" if unit in {"", "x", "%"} else f"{shown} {unit}"


def _of(suite: str, metric: str) -> Find:
    return (suite, "Twolane", metric)


def _passages(subject: str) -> Find:
    return ("engine", subject, "passages")


def _http(subject: str, metric: str) -> Find:
    return ("peers", subject, metric)


_ENGINE_GOALS = (
    Goal("engine by FlagEmbedding at batch 32", AT_LEAST, 4.5, _passages(ENGINE), _passages("FlagEmbedding, batch 32")),
    Goal(
        "engine by FlagEmbedding's default", AT_LEAST, 10, _passages(ENGINE), _passages("FlagEmbedding, default (256)")
    ),
    Goal(
        "engine by sentence-transformers fp32", AT_LEAST, 4, _passages(ENGINE), _passages("sentence-transformers fp32")
    ),
    Goal(
        "engine by sentence-transformers bf16",
        AT_LEAST,
        1.4,
        _passages(ENGINE),
        _passages("sentence-transformers bf16"),
    ),
    Goal("engine's share of the bf16 GEMM rate", AT_LEAST, 55, ("engine", ENGINE, "share of the GEMM rate"), unit="%"),
    Goal(
        "job by bare engine, long corpus",
        AT_LEAST,
        0.92,
        ("engine", JOB, "long corpus"),
        ("engine", ENGINE, "long corpus"),
    ),
    Goal("cosine to fp32, worst", AT_LEAST, 0.9995, ("engine", ENGINE, "cosine to fp32"), unit="cosine"),
    Goal("cosine to fp32 of a job, worst", AT_LEAST, 0.9995, ("engine", JOB, "cosine to fp32"), unit="cosine"),
)

_PEER_GOALS = (
    Goal("job by infinity-emb torch", AT_LEAST, 3, _http(OURS, "bulk"), _http("infinity-emb torch", "bulk")),
    Goal("job by infinity-emb onnx", AT_LEAST, 1.7, _http(OURS, "bulk"), _http("infinity-emb onnx", "bulk")),
    Goal(
        "64 clients by infinity-emb torch",
        AT_LEAST,
        3.5,
        _http(OURS, "64 clients"),
        _http("infinity-emb torch", "64 clients"),
    ),
    Goal(
        "64 clients by the AntSK way", AT_LEAST, 12, _http(OURS, "64 clients"), _http("AntSK-PyApi way", "64 clients")
    ),
    Goal(
        "1 client, p50 by infinity-emb torch",
        AT_MOST,
        1 / 3,
        _http(OURS, "1 client, p50"),
        _http("infinity-emb torch", "1 client, p50"),
    ),
)

_FIFO = ("lane", "one FIFO (lanes off)", "under bulk, p99")
_LANE_GOALS = (
    Goal("p99 under bulk by p99 idle", AT_MOST, 3, _of("lane", "p99 under bulk by p99 idle")),
    Goal("p99 of one FIFO by p99 of two lanes", AT_LEAST, 10, _FIFO, _of("lane", "under bulk, p99")),
    Goal("bulk kept at 5 interactive requests/s", AT_LEAST, 80, _of("lane", "bulk kept"), unit="%"),
)

_WEB_GOALS = (
    Goal("web process, first answer", AT_MOST, 1, _of("web", "start to first answer"), unit="s"),
    Goal("web process, resident", AT_MOST, 120, _of("web", "resident, web process"), unit="MB"),
    Goal("web process, torch loaded", AT_MOST, 0, _of("web", "torch loaded"), unit="times"),
    Goal("web, rise during the upload", AT_MOST, 64, _of("web", "rise of memory during an upload"), unit="MB"),
    Goal("hop and HTTP for one short text", AT_MOST, 3, _of("web", "hop and HTTP"), unit="ms"),
    Goal(
        "same vector by request and by job", AT_LEAST, 0.99999, _of("web", "interactive and job, cosine"), unit="cosine"
    ),
)

_JOB_GOALS = (
    Goal("a chunk without the model", AT_MOST, 5, _of("jobs", "a chunk without the model, p50"), unit="ms"),
    Goal("job with the fake model", AT_LEAST, 20_000, _of("jobs", "job with the fake model"), unit="items/s"),
    Goal("kill -9 to the next claim", AT_MOST, 18, _of("jobs", "kill -9 to the next claim of its chunk"), unit="s"),
    Goal("results read as npy", AT_LEAST, 100, _of("jobs", "results read as npy"), unit="MB/s"),
    Goal("worker's memory", AT_MOST, 700, _of("memory", "worker, highest"), unit="MB"),
    Goal("worker's memory, change over the job", AT_MOST, 5, _of("memory", "worker, change"), unit="%"),
)

_FAIRNESS_GOALS = (
    Goal(
        "Jain's index of tokens per tenant",
        AT_LEAST,
        0.95,
        _of("fairness", "Jain's index of tokens per tenant"),
        unit="",
    ),
    Goal(
        "passes until an idle tenant's item, worst",
        AT_MOST,
        2,
        _of("fairness", "passes until an idle tenant's item is computed, worst"),
        unit="passes",
    ),
)

GOALS = (*_ENGINE_GOALS, *_PEER_GOALS, *_LANE_GOALS, *_WEB_GOALS, *_JOB_GOALS, *_FAIRNESS_GOALS)
