"""Interactive calls over a real Redis: each is answered, refused or times out, and none is left hanging."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from redis import Redis

from config.catalog import load_catalog
from config.settings import Settings
from tasks import keys
from tasks.connections import connect
from tasks.engine import Engine, JobParams, Outcomes, Work
from tasks.errors import (
    DeadlineExceeded,
    EngineClosed,
    InvalidRequest,
    LaneFull,
    ModelNotFound,
    NoWorker,
    OutOfMemory,
    StoreRefused,
    StoreUnavailable,
    TooLarge,
    TwolaneError,
    WorkError,
)
from tasks.interactive import protocol
from tasks.interactive.client import InteractiveClient
from tasks.interactive.server import serve
from tasks.lanes import Lane, Service
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo
from tests.support.echo_engine import EchoEngine, echo
from tests.support.polling import wait_until

CARD = load_catalog().find("fake")
LANE = Lane("fake", Service.INTERACTIVE)


def work(*texts: str, service: Service = Service.INTERACTIVE, within_s: float | None = None) -> Work:
    deadline_s = None if within_s is None else time.monotonic() + within_s
    return Work("fake", "embeddings", texts, service=service, deadline_s=deadline_s)


@contextmanager
def announced(redis: Redis, rate: float = 1000.0) -> Iterator[None]:
    facts = WorkerInfo("w1", "here", 1, "cpu", "float32", "f", rate)
    announcer = WorkerHeartbeat(redis, "w1", lambda: {"fake": facts}, 5.0)
    announcer.start()
    try:
        wait_until(lambda: redis.exists(keys.lane_workers("fake")))
        yield
    finally:
        announcer.stop()


@contextmanager
def serving(url: str, engine: Engine) -> Iterator[threading.Event]:
    assert CARD is not None
    stop = threading.Event()
    with connect(url, name="worker", block_s=1) as client, announced(client):
        # A failing test must end it too, and what cannot be ended must not keep the test run from ending.
        thread = threading.Thread(target=serve, args=(client, [CARD], engine, stop), daemon=True)
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            thread.join(20)


@pytest.fixture
def client(settings: Settings) -> Iterator[InteractiveClient]:
    asking = InteractiveClient(settings)
    yield asking
    asking.close()


def ask_in_thread(client: InteractiveClient, asked: Work, tokens: int = 5) -> tuple[threading.Thread, list[object]]:
    """Ask in a thread of its own; the list gets the outcomes or the error."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(client.ask(asked, tokens))
        except TwolaneError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


@pytest.mark.parametrize("service", list(Service))
def test_what_is_asked_comes_back_as_the_engine_made_it(
    client: InteractiveClient, redis_url: str, service: Service
) -> None:
    with serving(redis_url, EchoEngine()):
        outcomes = client.ask(work("one", "bad", "", "vier ✓", service=service), 10)
    expected = echo(work("one", "bad", "", "vier ✓"))
    np.testing.assert_array_equal(outcomes.values, expected.values)
    np.testing.assert_array_equal(outcomes.tokens, expected.tokens)
    np.testing.assert_array_equal(outcomes.truncated, expected.truncated)
    assert outcomes.errors == expected.errors


def test_every_field_of_the_work_reaches_the_engine(client: InteractiveClient, redis_url: str) -> None:
    engine = EchoEngine()
    asked = Work(
        "fake",
        "rerank",
        ["d"],
        ["q"],
        Service.INTERACTIVE,
        JobParams("Do it", 16, "none"),
        deadline_s=time.monotonic() + 20,
    )
    with serving(redis_url, engine):
        client.ask(asked, 3)
    (seen,) = engine.seen
    assert (seen.model, seen.operation, seen.texts, seen.queries) == ("fake", "rerank", ["d"], ["q"])
    assert (seen.service, seen.params) == (asked.service, asked.params)
    assert seen.deadline_s == pytest.approx(asked.deadline_s, abs=1.0)


def test_callers_in_many_threads_each_get_their_own_answer(
    client: InteractiveClient, redis: Redis, redis_url: str
) -> None:
    wrong: list[str] = []

    def ask_many(caller: int) -> None:
        for turn in range(50):
            text = "x" * (caller + 1) + "y" * turn
            if client.ask(work(text), 5).values[0, 0] != len(text):
                wrong.append(text)

    with serving(redis_url, EchoEngine()):
        threads = [threading.Thread(target=ask_many, args=(caller,)) for caller in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: not redis.exists(keys.lane_load(LANE)))
    assert wrong == []


def test_without_a_worker_it_is_refused_at_once(client: InteractiveClient, redis: Redis) -> None:
    with pytest.raises(NoWorker):
        client.ask(work("one"), 5)
    assert not redis.exists(keys.lane_requests(LANE))


def test_a_worker_that_was_not_heard_of_in_time_does_not_count(client: InteractiveClient, redis: Redis) -> None:
    redis.zadd(keys.lane_workers("fake"), {"w1": 1.0})
    with pytest.raises(NoWorker):
        client.ask(work("one"), 5)


def test_a_full_lane_refuses_and_says_when_it_will_have_drained(
    redis: Redis, redis_url: str, settings: Settings
) -> None:
    small = settings.model_copy(update={"lane_max_tokens": 10_000})
    asking = InteractiveClient(small)
    with announced(redis, rate=2000.0):
        waiting, ended = ask_in_thread(asking, work("one", within_s=2), 9_000)
        wait_until(lambda: redis.llen(keys.lane_requests(LANE)) == 1)
        with pytest.raises(LaneFull) as refused:
            asking.ask(work("two"), 2_000)
        assert refused.value.retry_after_s == pytest.approx(4.5)
        waiting.join()
    asking.close()
    assert isinstance(ended[0], DeadlineExceeded)


def test_a_call_whose_answer_would_come_too_late_is_refused_and_an_idle_lane_takes_any(
    redis: Redis, redis_url: str, client: InteractiveClient
) -> None:
    engine = EchoEngine(hold=True)
    with serving(redis_url, engine):
        # 100 tokens took half a second: 10,000 take some 50 s.
        with pytest.raises(DeadlineExceeded):
            client.ask(work("slow", within_s=0.5), 100)
        held, ended = ask_in_thread(client, work("first", within_s=5), 10_000)
        wait_until(lambda: len(engine.seen) == 2)
        with pytest.raises(LaneFull, match="waits") as refused:
            client.ask(work("second", within_s=5), 100)
        assert refused.value.retry_after_s > 10
        held.join()
    assert isinstance(ended[0], DeadlineExceeded)


def test_one_request_that_redis_refuses_fails_alone(
    client: InteractiveClient, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = protocol.encode_request

    def encode(number: int, reply_key: str, tokens: int, asked: Work) -> bytes:
        return b"" if "broken" in asked.texts else whole(number, reply_key, tokens, asked)

    monkeypatch.setattr(protocol, "encode_request", encode)
    send = client._send
    monkeypatch.setattr(client, "_send", lambda batch: (time.sleep(0.2), send(batch)))
    with serving(redis_url, EchoEngine()):
        calls = [ask_in_thread(client, work(text)) for text in ("first", "broken", "fine", "broken", "well")]
        for thread, _ in calls:
            thread.join()
    assert [type(ended[0]) for _, ended in calls] == [Outcomes, StoreRefused, Outcomes, StoreRefused, Outcomes]


def test_a_call_with_more_bytes_than_one_may_have_is_refused_with_the_way_out(
    redis_url: str, settings: Settings
) -> None:
    asking = InteractiveClient(settings.model_copy(update={"max_call_bytes": 1000}))
    with serving(redis_url, EchoEngine()):
        with pytest.raises(TooLarge, match="POST /v1/jobs"):
            asking.ask(work("x" * 1000), 5)
        assert asking.ask(work("x" * 100), 5).values.shape == (1, 2)
    asking.close()


def test_an_empty_lane_takes_a_request_above_its_limit(redis_url: str, settings: Settings) -> None:
    asking = InteractiveClient(settings.model_copy(update={"lane_max_tokens": 10}))
    with serving(redis_url, EchoEngine()):
        assert asking.ask(work("one"), 11).values.shape == (1, 2)
    asking.close()


def test_tokens_left_over_from_a_dead_worker_are_forgotten(
    client: InteractiveClient, redis: Redis, redis_url: str
) -> None:
    redis.hset(keys.lane_load(LANE), "waiting", 10**9)
    with serving(redis_url, EchoEngine()):
        assert client.ask(work("one"), 5).values.shape == (1, 2)
        wait_until(lambda: not redis.exists(keys.lane_load(LANE)))


def test_a_passed_deadline_is_an_error_and_the_engine_never_sees_the_work(
    client: InteractiveClient, redis: Redis, redis_url: str
) -> None:
    engine = EchoEngine()
    with announced(redis):
        with pytest.raises(DeadlineExceeded):
            client.ask(work("late", within_s=0.2), 5)
        # The deadline counts by Redis' clock from the arrival there, which may be late on a busy machine.
        wait_until(lambda: not redis.exists(keys.lane_requests(LANE)))
        with serving(redis_url, engine):
            client.ask(work("in time"), 5)
    assert [seen.texts for seen in engine.seen] == [["in time"]]


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFound("no such model", param="model"),
        InvalidRequest("too long", param="input"),
        OutOfMemory("does not fit"),
    ],
)
def test_an_error_of_ours_arrives_as_the_class_that_was_raised(
    client: InteractiveClient, redis_url: str, error: TwolaneError
) -> None:
    engine = EchoEngine()
    engine.fail_with = error
    with serving(redis_url, engine), pytest.raises(type(error)) as raised:
        client.ask(work("one"), 5)
    assert vars(raised.value) == vars(error)


def test_any_other_error_arrives_as_failed_work_without_its_text(client: InteractiveClient, redis_url: str) -> None:
    engine = EchoEngine()
    engine.fail_with = ValueError("the path /secret")
    with serving(redis_url, engine), pytest.raises(WorkError, match="ValueError") as raised:
        client.ask(work("one"), 5)
    assert "secret" not in raised.value.message


def test_what_a_full_engine_refuses_waits_where_other_workers_see_it(
    client: InteractiveClient, redis: Redis, redis_url: str
) -> None:
    engine = EchoEngine(hold=True, room=2)
    with serving(redis_url, engine):
        asked = [ask_in_thread(client, work(str(i))) for i in range(6)]
        wait_until(lambda: len(engine.seen) == 2 and redis.llen(keys.lane_requests(LANE)) == 4)
        wait_until(lambda: redis.hget(keys.lane_load(LANE), "waiting") == b"20")
        wait_until(lambda: redis.pttl(keys.lane_requests(LANE)) > 0)
        engine.hold = False
        engine.release()
        for thread, ended in asked:
            thread.join()
            assert not isinstance(ended[0], Exception)


def test_a_worker_that_stops_answers_what_it_has_taken(client: InteractiveClient, redis_url: str) -> None:
    engine = EchoEngine(hold=True)
    with serving(redis_url, engine) as stop:
        thread, ended = ask_in_thread(client, work("one"))
        wait_until(lambda: engine.seen)
        stop.set()
        engine.release()
        thread.join()
    assert not isinstance(ended[0], Exception)


def test_an_engine_that_closes_leaves_the_request_to_another_worker(client: InteractiveClient, redis_url: str) -> None:
    closed = EchoEngine()
    closed.fail_with = EngineClosed("going away")
    with serving(redis_url, closed):
        thread, ended = ask_in_thread(client, work("one"))
        with serving(redis_url, EchoEngine()):
            thread.join()
    assert not isinstance(ended[0], Exception)


def test_an_unreadable_request_is_dropped_and_the_next_one_is_served(
    client: InteractiveClient, redis: Redis, redis_url: str
) -> None:
    redis.rpush(keys.lane_requests(LANE), b"no request at all", b"")
    with serving(redis_url, EchoEngine()):
        assert client.ask(work("one"), 5).values.shape == (1, 2)


def test_a_lone_surrogate_is_the_callers_error(client: InteractiveClient) -> None:
    with pytest.raises(InvalidRequest):
        client.ask(work("\ud800"), 5)


def test_every_key_of_the_hop_has_an_expiry(client: InteractiveClient, redis: Redis, redis_url: str) -> None:
    engine = EchoEngine(hold=True, room=1)
    with serving(redis_url, engine):
        asked = [ask_in_thread(client, work(str(i))) for i in range(3)]
        wait_until(lambda: redis.llen(keys.lane_requests(LANE)) == 2)
        # A list that is taken and put back just now is missing for a moment, which is no fault (-2).
        assert [key for key in redis.scan_iter() if redis.pttl(key) == -1] == []
        engine.hold = False
        engine.release()
        for thread, _ in asked:
            thread.join()


def test_closing_settles_what_waits_and_gives_up_the_reply_list(redis: Redis, settings: Settings) -> None:
    asking = InteractiveClient(settings)
    with announced(redis):
        thread, ended = ask_in_thread(asking, work("one"))
        wait_until(lambda: redis.llen(keys.lane_requests(LANE)) == 1)
        asking.close()
        thread.join()
        assert isinstance(ended[0], StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            asking.ask(work("two"), 5)
    assert redis.keys("*replies*") == []
