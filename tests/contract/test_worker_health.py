"""A worker's container is healthy when its own machine can serve every model."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from redis import Redis

from config.settings import Settings
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo
from workers.health import find_unready_models, main

Announce = Callable[[WorkerInfo], None]
FACTS = WorkerInfo("w1", "here", 1, "cpu", "float32", "f", 0.0)


@pytest.fixture
def announce(redis: Redis) -> Announce:
    """Announce facts of the fake model once."""
    return lambda facts: WorkerHeartbeat(redis, facts.worker_id, dict, ttl_s=60)._send({"fake": facts})


def test_a_machine_without_a_worker_is_not_ready(settings: Settings) -> None:
    assert find_unready_models(settings, "here") == ["fake"]


def test_a_machine_whose_worker_is_announced_is_ready(settings: Settings, announce: Announce) -> None:
    announce(FACTS)
    assert find_unready_models(settings, "here") == []


def test_a_worker_of_another_machine_does_not_count(settings: Settings, announce: Announce) -> None:
    announce(replace(FACTS, host="there"))
    assert find_unready_models(settings, "here") == ["fake"]


def test_a_worker_that_makes_no_vectors_does_not_count(settings: Settings, announce: Announce) -> None:
    announce(replace(FACTS, healthy=False))
    assert find_unready_models(settings, "here") == ["fake"]


def test_a_worker_that_takes_no_chunks_does_not_count(settings: Settings, announce: Announce) -> None:
    announce(replace(FACTS, bulk=False))
    assert find_unready_models(settings, "here") == ["fake"]


def test_a_server_that_does_not_answer_is_said_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWOLANE_REDIS_URL", "redis://127.0.0.1:1/0")
    assert main() == 1
    assert "does not answer" in capsys.readouterr().out
