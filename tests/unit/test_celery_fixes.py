"""The worker's consumer outlives what the libraries raise when a connection goes away at a bad moment."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, bootsteps
from celery.contrib.testing.worker import start_worker
from celery.worker.control import Panel

from tasks.celery_fixes import ForgivingRequest
from workers.boot import SWITCHED_OFF
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


class Events:
    """Celery's sender of events."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, name: str, **fields: Any) -> None:
        self.sent.append((name, fields))


@pytest.mark.parametrize(
    ("result", "event"),
    [
        ("chunk 3 of job_1: 64 items, 2 failed", "task-succeeded"),
        ("chunk 3 of job_1 was stopped", "task-succeeded"),
        ("failed: chunk 3 of job_1, attempt 1: ZeroDivisionError", "task-failed"),
        (None, "task-revoked"),
    ],
)
def test_flower_hears_what_became_of_a_message(result: str | None, event: str) -> None:
    request = object.__new__(ForgivingRequest)
    request.id, request._eventer, request._task = "1", Events(), SimpleNamespace(send_events=True)
    request.send_event("task-succeeded", result=repr(result), runtime=1.0)
    ((name, fields),) = request._eventer.sent
    assert (name, fields["uuid"]) == (event, "1")


def test_what_would_stop_a_worker_behind_its_jobs_is_switched_off() -> None:
    for name in SWITCHED_OFF:
        assert "switched off" in Panel.data[name](None, timeout=1)["error"]
    # What Flower reads stays.
    assert {"ping", "stats", "active", "registered", "conf", "active_queues"} <= Panel.data.keys()
    assert not {"ping", "stats", "active"} & set(SWITCHED_OFF)


def test_our_workers_have_this_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert worker_app.conf.worker_consumer == STEADY
