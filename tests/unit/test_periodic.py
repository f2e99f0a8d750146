"""Periodic threads survive errors of their function, log the first of several, and stop at once."""

import logging
import threading

import pytest
from redis import ConnectionError as RedisConnectionError

from tasks.periodic import PeriodicThread

LONG_S = 60.0


def run(outcomes: list[Exception | None]) -> None:
    """Let one call after another end like this, without waiting between them."""
    left, done = list(outcomes), threading.Event()
    wake = threading.Event()

    def run_once() -> None:
        wake.set()
        if not left:
            done.set()
            return
        if (error := left.pop(0)) is not None:
            raise error

    thread = PeriodicThread(run_once, LONG_S, "sweeper", wake=wake)
    thread.start()
    assert done.wait(10)
    thread.stop(10)


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ZeroDivisionError("secret text"), MemoryError()])
def test_a_thread_survives_errors_and_logs_only_the_first_in_a_row(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tasks.periodic"):
        run([error, error, None, error])
    assert len(caplog.messages) == 2
    assert all("sweeper" in message and "secret text" not in message for message in caplog.messages)


def test_a_stop_does_not_wait_for_the_next_call() -> None:
    called = threading.Event()
    thread = PeriodicThread(called.set, LONG_S, "sweeper")
    thread.start()
    assert called.wait(10)
    thread.stop(LONG_S)
    assert thread.stopping
    assert not thread._thread.is_alive()


def test_a_thread_that_was_never_started_can_be_stopped_twice() -> None:
    thread = PeriodicThread(lambda: None, LONG_S, "sweeper")
    thread.stop(LONG_S)
    thread.stop(LONG_S)
