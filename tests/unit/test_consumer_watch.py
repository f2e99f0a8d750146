"""Whether a worker's consumer takes chunks, seen from outside of its thread."""

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tasks.lanes import Lane, Service
from workers import consumer_watch
from workers.consumer_watch import ConsumerWatch

LANE = Lane("fake", Service.BULK)


class CeleryConsumer:
    """As much of Celery's as the watch looks at; as its worker, it is its own consumer."""

    def __init__(self) -> None:
        self.queues = {LANE.queue}
        self.stands_still = False
        self.calls = 0
        self.task_consumer: CeleryConsumer | None = self

    @property
    def consumer(self) -> "CeleryConsumer":
        return self

    def consuming_from(self, queue: str) -> bool:
        return queue in self.queues

    def call_soon(self, function: Callable[[], None]) -> None:
        self.calls += 1
        if not self.stands_still:
            function()


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> CeleryConsumer:
    monkeypatch.setattr(consumer_watch, "time", SimpleNamespace(monotonic=iter(range(1000)).__next__))
    return CeleryConsumer()


def looks(watch: ConsumerWatch, times: int = 12) -> list[bool]:
    """What is seen in so many looks, a second and more apart."""
    return [watch.takes(LANE) for _ in range(times)]


def test_a_consumer_that_reads_its_queue_takes_chunks(consumer: CeleryConsumer) -> None:
    assert all(looks(ConsumerWatch(consumer)))


def test_a_consumer_that_was_cancelled_takes_none_after_a_grace_and_is_logged_once(
    consumer: CeleryConsumer, caplog: pytest.LogCaptureFixture
) -> None:
    watch = ConsumerWatch(consumer)
    consumer.queues.clear()
    with caplog.at_level(logging.ERROR):
        seen = looks(watch)
    assert seen[0] is True
    assert seen[-1] is False
    assert len([record for record in caplog.records if LANE.queue in record.getMessage()]) == 1
    consumer.queues.add(LANE.queue)
    assert looks(watch)[-1] is True


def test_a_consumer_without_a_connection_takes_none(consumer: CeleryConsumer) -> None:
    watch = ConsumerWatch(consumer)
    consumer.task_consumer = None
    assert looks(watch)[-1] is False


def test_a_consumer_whose_loop_stands_still_takes_none_and_is_asked_once(consumer: CeleryConsumer) -> None:
    watch = ConsumerWatch(consumer)
    consumer.stands_still = True
    assert looks(watch)[-1] is False
    assert consumer.calls == 1
