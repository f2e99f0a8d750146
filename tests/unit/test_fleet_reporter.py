"""What a worker says of itself, and when it ends itself."""

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from config.settings import Settings
from tasks.presence.fleet import Order, WorkerCard
from workers import fleet_reporter
from workers.fleet_reporter import FleetReporter


class FakeEngine:
    """Counters that a test moves."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(
            (
                "tokens",
                "busy_s",
                "tokens_per_s",
                "passes",
                "pass_s",
                "last_pass_ms",
                "interactive_tokens",
                "bulk_tokens",
            ),
            0.0,
        )

    def stats(self) -> Mapping[str, float]:
        return self.counters


class Wire:
    """In the place of Redis: the cards that were sent, and the order that the next one brings back."""

    def __init__(self) -> None:
        self.cards: list[WorkerCard] = []
        self.order: Order = ""

    def send(self, _: Any, card: WorkerCard) -> Order:
        self.cards.append(card)
        return self.order


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire()
    monkeypatch.setattr(fleet_reporter, "send_card", made.send)
    monkeypatch.setattr(fleet_reporter.PeriodicThread, "start", lambda _: None)
    return made


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, number: signals.append(number))
    return signals


def make(**fields: Any) -> tuple[FleetReporter, FakeEngine, list[str]]:
    states = {"fake": "ready"}
    reporter = FleetReporter(None, "cpu-1@box#7", lambda: states, Settings(_env_file=None, **fields))  # type: ignore[arg-type] # nothing is sent
    engine, drained = FakeEngine(), list[str]()
    reporter.report()
    reporter.serve(engine, "cpu", lambda: drained.append("drained"))
    return reporter, engine, drained


def test_a_worker_reports_from_the_start_of_loading_with_speed_and_memory(wire: Wire) -> None:
    reporter, engine, _ = make()
    engine.counters |= {"tokens": 5000.0, "busy_s": 1.0, "pass_s": 2.0, "last_pass_ms": 1500.0}
    reporter.report()
    loading, ready = wire.cards
    assert (loading.state, ready.state, ready.models) == ("loading", "ready", {"fake": "ready"})
    assert ready.tokens_per_s > 0
    assert (ready.pass_s, ready.slowest_pass_s) == (2.0, 1.5)
    assert 0 < ready.memory_ready_bytes <= ready.memory_bytes < ready.memory_total_bytes
    reporter.stop()
    assert wire.cards[-1].state == "stopped"


def test_a_worker_above_its_memory_ends_in_order_and_says_why(wire: Wire, ended: list[int]) -> None:
    reporter, _, _ = make(worker_max_memory_bytes=2**20)
    reporter.report()
    assert ended == []  # it was above from the start: a fresh one would be, too
    reporter._card = replace(reporter._card, memory_ready_bytes=2**19)
    reporter.report()
    reporter.report()
    assert ended == [signal.SIGTERM]  # once: what it holds takes some time to finish
    reporter.stop()
    assert (wire.cards[-1].state, "is above the limit of 0.0 GB" in wire.cards[-1].reason) == ("stopped", True)


def test_a_worker_below_its_memory_goes_on(wire: Wire, ended: list[int]) -> None:
    reporter, _, _ = make(worker_max_memory_bytes=2**40)
    reporter.report()
    assert (ended, wire.cards[-1].state, wire.cards[-1].memory_limit_bytes) == ([], "ready", 2**40)


def test_a_worker_drains_once_and_restarts_when_it_is_asked(wire: Wire, ended: list[int]) -> None:
    reporter, _, drained = make()
    wire.order = "drain"
    for _ in range(3):
        reporter.report()
    assert (drained, ended, wire.cards[-1].state) == (["drained"], [], "draining")
    wire.order = "restart"
    reporter.report()
    reporter.report()
    assert (drained, ended) == (["drained"], [signal.SIGTERM])
