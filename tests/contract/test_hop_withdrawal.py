"""Requests whose callers went away leave the lane: out of the list, out of the engine, and their room is back."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import CallerGone, LaneFull
from tasks.interactive.client import InteractiveClient
from tests.contract.test_interactive_hop import LANE, announced, ask_in_thread, serving, work
from tests.support.echo_engine import EchoEngine
from tests.support.polling import wait_until

ROOM = 100


class Hangup:
    """A watch whose caller hangs up when the test says so."""

    def __init__(self) -> None:
        self.watched = threading.Event()
        self._hang_up: Callable[[], None] | None = None

    @contextlib.contextmanager
    def __call__(self, hang_up: Callable[[], None]) -> Iterator[None]:
        self._hang_up = hang_up
        self.watched.set()
        yield

    def come(self) -> None:
        assert self.watched.wait(10)
        assert self._hang_up is not None
        self._hang_up()


@pytest.fixture
def client(settings: Settings) -> Iterator[InteractiveClient]:
    asking = InteractiveClient(settings.model_copy(update={"lane_max_tokens": ROOM}))
    yield asking
    asking.close()


def ask_and_leave(client: InteractiveClient, text: str, tokens: int) -> tuple[Hangup, threading.Thread, list[object]]:
    hangup, ended = Hangup(), list[object]()

    def run() -> None:
        try:
            ended.append(client.ask(work(text), tokens, hangup))
        except CallerGone as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return hangup, thread, ended


def waiting_tokens(redis: Redis) -> int:
    return int(redis.hget(keys.lane_load(LANE), "waiting") or 0)


def test_a_waiting_request_leaves_the_list_and_its_room_is_back(client: InteractiveClient, redis: Redis) -> None:
    with announced(redis):
        others = [ask_in_thread(client, work(f"other {at}", within_s=5), 10)[0] for at in range(2)]
        hangup, thread, ended = ask_and_leave(client, "left", ROOM - 20)
        wait_until(lambda: waiting_tokens(redis) == ROOM)
        with pytest.raises(LaneFull):
            client.ask(work("too much", within_s=5), 10)
        hangup.come()
        thread.join(10)
        assert isinstance(ended[0], CallerGone)
        wait_until(lambda: waiting_tokens(redis) == 20)
        left = redis.lrange(keys.lane_requests(LANE), 0, -1)
        assert sorted(text for text in ("other 0", "other 1", "left") for one in left if text.encode() in one) == [
            "other 0",
            "other 1",
        ]
        assert redis.pttl(keys.lane_requests(LANE)) > 0
    for other in others:
        other.join(10)


def test_a_request_that_a_worker_has_is_given_up_there(client: InteractiveClient, redis_url: str, redis: Redis) -> None:
    engine = EchoEngine(hold=True)
    with serving(redis_url, engine):
        hangup, thread, _ = ask_and_leave(client, "left", 10)
        wait_until(lambda: engine.held)
        (future,) = engine.held
        hangup.come()
        thread.join(10)
        wait_until(future.cancelled)
        assert 0 < redis.pttl(keys.lane_withdrawn(LANE)) <= 5000


def test_a_request_that_a_full_worker_puts_back_again_and_again_is_never_taken(
    client: InteractiveClient, redis_url: str, redis: Redis
) -> None:
    engine = EchoEngine(hold=True, room=1)
    with serving(redis_url, engine):
        first, kept = ask_in_thread(client, work("first"), 10)
        wait_until(lambda: engine.held)
        hangup, thread, _ = ask_and_leave(client, "left", 10)
        hangup.come()
        thread.join(10)
        wait_until(lambda: redis.llen(keys.lane_requests(LANE)) == 0 and waiting_tokens(redis) == 0)
        engine.hold = False
        engine.release()
        first.join(10)
        client.ask(work("next"), 10)
        assert len(kept) == 1
        assert [seen.texts for seen in engine.seen] == [["first"], ["next"]]


def test_nobody_looks_after_a_caller_who_is_answered_at_once(client: InteractiveClient, redis_url: str) -> None:
    hangup = Hangup()
    with serving(redis_url, EchoEngine()):
        client.ask(work("quick"), 10, hangup)
    assert not hangup.watched.is_set()
