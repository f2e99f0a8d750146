"""Workers announce themselves by the server's clock, and the web sees who is ready."""

import time
from dataclasses import replace

import orjson
import pytest
from redis import Redis

from tasks import keys
from tasks.connections import connect
from tasks.errors import StoreUnavailable
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo, WorkerRegistry

FACTS = WorkerInfo("w1", "here", 42, "cpu", "float32", "abc", 1234.5)


def seen_within(presence: WorkerRegistry, expected: dict[str, list[WorkerInfo]], within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if presence.ready_models() == expected:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_is_ready_while_it_announces_and_gone_when_it_withdraws(redis: Redis) -> None:
    presence = WorkerRegistry(redis, ["fake", "other"])
    heartbeat = WorkerHeartbeat(redis, "w1", lambda: {"fake": FACTS}, 5.0)
    assert presence.ready_models() == {}
    heartbeat.start()
    assert seen_within(presence, {"fake": [FACTS]})
    heartbeat.stop()
    assert seen_within(presence, {})
    assert redis.keys() == []


def test_a_worker_that_turns_unhealthy_withdraws_and_comes_back_by_itself(redis: Redis) -> None:
    facts = {"fake": FACTS}
    presence = WorkerRegistry(redis, ["fake"])
    heartbeat = WorkerHeartbeat(redis, "w1", lambda: dict(facts), 5.0)
    heartbeat.start()
    assert seen_within(presence, {"fake": [FACTS]})
    facts.clear()
    assert seen_within(presence, {})
    facts["fake"] = FACTS
    assert seen_within(presence, {"fake": [FACTS]})
    heartbeat.stop()


def test_two_workers_of_one_model_are_both_seen_and_leave_apart(redis: Redis) -> None:
    other = replace(FACTS, worker_id="w2")
    first = WorkerHeartbeat(redis, "w1", lambda: {"fake": FACTS}, 5.0)
    second = WorkerHeartbeat(redis, "w2", lambda: {"fake": other}, 5.0)
    presence = WorkerRegistry(redis, ["fake"])
    first.start()
    assert seen_within(presence, {"fake": [FACTS]})
    second.start()
    assert seen_within(presence, {"fake": [FACTS, other]})
    first.stop()
    assert seen_within(presence, {"fake": [other]})
    second.stop()


def test_a_worker_that_died_is_forgotten_when_its_time_is_over(redis: Redis) -> None:
    presence = WorkerRegistry(redis, ["fake"])
    dead = WorkerHeartbeat(redis, "w1", lambda: {"fake": FACTS}, 0.3)
    dead._send({"fake": FACTS})  # once, and never again
    assert presence.ready_models() == {"fake": [FACTS]}
    assert seen_within(presence, {})


def test_what_a_newer_worker_says_besides_is_passed_over(redis: Redis) -> None:
    WorkerHeartbeat(redis, "w1", lambda: {"fake": FACTS}, 5.0)._send({"fake": FACTS})
    told = orjson.loads(redis.hget(keys.worker_info("fake"), "w1") or b"")
    redis.hset(keys.worker_info("fake"), "w1", orjson.dumps({**told, "mood": "good"}))
    assert WorkerRegistry(redis, ["fake"]).ready_models() == {"fake": [FACTS]}


def test_an_announcement_has_an_expiry(redis: Redis) -> None:
    heartbeat = WorkerHeartbeat(redis, "w1", lambda: {"fake": FACTS}, 5.0)
    heartbeat._send({"fake": FACTS})
    assert 0 < redis.pttl(keys.lane_workers("fake")) <= 5000
    assert 0 < redis.pttl(keys.worker_info("fake")) <= 5000


def test_a_server_that_is_away_is_an_error_with_a_name() -> None:
    with connect("redis://127.0.0.1:1/0", name="test") as nobody, pytest.raises(StoreUnavailable):
        WorkerRegistry(nobody, ["fake"]).ready_models()


def test_a_worker_that_died_before_the_clock_of_redis_stepped_back_is_not_ready_for_that_hour(redis: Redis) -> None:
    WorkerHeartbeat(redis, "dead", lambda: {"fake": FACTS}, 5.0)._send({"fake": FACTS})
    redis.zincrby(keys.lane_workers("fake"), 3_600_000, "dead")
    assert WorkerRegistry(redis, ["fake"]).ready_models() == {}
    live = replace(FACTS, worker_id="w2")
    WorkerHeartbeat(redis, "w2", lambda: {"fake": live}, 5.0)._send({"fake": live})
    assert redis.zrange(keys.lane_workers("fake"), 0, -1) == [b"w2"]
