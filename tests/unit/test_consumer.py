"""The worker's consumer outlives what the libraries raise when a connection goes away at a bad moment."""

import threading
from typing import Any

import pytest
from celery import Celery, bootsteps
from celery.contrib.testing.worker import start_worker

from workers.boot import app as worker_app

STEADY = "workers.consumer:SteadyConsumer"


def make_app(starts: list[int], again: threading.Event) -> Celery:
    """An app without a server, whose consumer trips once."""

    class Trip(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            starts.append(1)
            if len(starts) == 1:
                raise AttributeError("'NoneType' object has no attribute 'hostname'")
            again.set()

    made = Celery("trip", broker="memory://", set_as_current=False)
    made.conf.update(worker_consumer=STEADY, broker_connection_retry_on_startup=True)
    made.steps["consumer"].add(Trip)
    return made


# Celery says itself that it will cancel tasks at such a loss in its next major version.
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
def test_a_consumer_that_trips_over_a_closed_connection_starts_again() -> None:
    starts: list[int] = []
    again = threading.Event()
    with start_worker(make_app(starts, again), pool="solo", perform_ping_check=False, shutdown_timeout=20):
        assert again.wait(20)
    assert len(starts) == 2


def test_our_workers_have_this_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert worker_app.conf.worker_consumer == STEADY
