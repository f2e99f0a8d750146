"""The worker's consumer outlives what the libraries raise when a connection goes away at a bad moment."""

import threading
from typing import Any

import pytest
from celery import Celery, bootsteps
from celery.contrib.testing.worker import start_worker

from workers.boot import app as worker_app

STEADY = "tasks.celery_fixes:SteadyConsumer"


def trip() -> None:
    raise AttributeError("'NoneType' object has no attribute 'hostname'")


def make_app(starts: list[int], again: threading.Event, monkeypatch: pytest.MonkeyPatch | None = None) -> Celery:
    """An app without a server, whose consumer trips once; with the patch also when it closes its connection."""

    class Trip(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            starts.append(1)
            if len(starts) == 1:
                if monkeypatch is not None:
                    monkeypatch.setattr(parent.connection, "close", trip)
                trip()
            again.set()

    made = Celery("trip", broker="memory://", set_as_current=False)
    made.conf.update(worker_consumer=STEADY, broker_connection_retry_on_startup=True)
    made.steps["consumer"].add(Trip)
    return made


# Celery says itself that it will cancel tasks at such a loss in its next major version.
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
@pytest.mark.usefixtures("logging_restored")
@pytest.mark.parametrize("when", ["it is used", "it is closed, too"])
def test_a_consumer_that_trips_over_a_closed_connection_starts_again(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    starts: list[int] = []
    again = threading.Event()
    tripping = make_app(starts, again, monkeypatch if when != "it is used" else None)
    with start_worker(tripping, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        assert again.wait(20)
    assert len(starts) == 2


def test_our_workers_have_this_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert worker_app.conf.worker_consumer == STEADY
