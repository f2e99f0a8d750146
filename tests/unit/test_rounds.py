"""Rounds outlive what goes wrong in them, say so once, and end when they are told to."""

import logging
import threading

import pytest
from redis import ConnectionError as RedisConnectionError

from tasks.periodic import Rounds

LONG_S = 60.0


def run(outcomes: list[Exception | None]) -> None:
    """Let one round after another end like this, without waiting between them."""
    left, done = list(outcomes), threading.Event()
    bell = threading.Event()

    def look() -> None:
        bell.set()
        if not left:
            done.set()
            return
        if (error := left.pop(0)) is not None:
            raise error

    rounds = Rounds(look, LONG_S, "somebody", bell=bell)
    rounds.start()
    assert done.wait(10)
    rounds.stop(10)


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ZeroDivisionError("secret text"), MemoryError()])
def test_rounds_go_on_after_errors_and_tell_only_the_first_in_a_row(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tasks.periodic"):
        run([error, error, None, error])
    assert len(caplog.messages) == 2
    assert all("somebody" in message and "secret text" not in message for message in caplog.messages)


def test_a_stop_does_not_wait_for_the_next_round() -> None:
    looked = threading.Event()
    rounds = Rounds(looked.set, LONG_S, "somebody")
    rounds.start()
    assert looked.wait(10)
    rounds.stop(LONG_S)
    assert rounds.stopping
    assert not rounds._thread.is_alive()


def test_rounds_that_were_never_started_can_be_stopped_twice() -> None:
    rounds = Rounds(lambda: None, LONG_S, "somebody")
    rounds.stop(LONG_S)
    rounds.stop(LONG_S)
