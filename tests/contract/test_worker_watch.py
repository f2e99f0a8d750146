"""A sick worker is seen from outside: said once, shown, and what it holds runs elsewhere."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from app.admin import worker_watch
from app.admin.worker_watch import WorkerWatch
from config.settings import Settings
from tasks import keys
from tasks.jobs.claims import Completed
from tasks.presence.diagnosis import diagnose, explain
from tasks.presence.fleet import FleetMember, WorkerCard, WorkerEnd, send_card
from tests.support.job_maker import make_completion, submit
from tests.support.web import opened_app, services_of


@pytest.fixture(scope="module")
def app_here(settings_here: Settings) -> Iterator[Flask]:
    with opened_app(settings_here) as app:
        yield app


@pytest.fixture
def watch(app_here: Flask, monkeypatch: pytest.MonkeyPatch) -> WorkerWatch:
    services_of(app_here).redis.flushall()
    monkeypatch.setattr(worker_watch, "_PROOF_S", 0.05)
    return WorkerWatch(services_of(app_here))


def card(worker_id: str = "cpu-1@box#7", **fields: Any) -> WorkerCard:
    known: dict[str, Any] = {"host": "box", "pid": 7, "device": "cpu", "state": "ready", "models": {"fake": "ready"}}
    return WorkerCard(**({"worker_id": worker_id, **known} | fields))


def freeze(app: Flask, worker_id: str, silent_s: float) -> None:
    assert services_of(app).redis.zincrby(keys.workers_seen(), -silent_s * 1000, worker_id)


GB = 2**30


@pytest.mark.parametrize(
    ("fields", "silent_s", "condition", "says"),
    [
        ({}, 1, "well", ""),
        ({}, 9, "silent", "nothing was heard of it for 9 s"),
        ({}, 400, "lost", "nothing was heard of it for 400 s"),
        ({"state": "stopped"}, 400, "stopped", ""),
        ({"state": "loading"}, 1, "loading", ""),
        ({"state": "draining", "reason": "asked"}, 1, "draining", "asked"),
        ({"pass_s": 11.0}, 1, "stuck", "one pass for 11 s"),
        ({"pass_s": 11.0, "slowest_pass_s": 8.0}, 1, "well", ""),
        ({"pass_s": 17.0, "slowest_pass_s": 8.0}, 1, "stuck", "one pass for 17 s"),
        ({"models": {"fake": "ready", "other": "failed"}}, 1, "failing", "other fails"),
        ({"memory_ready_bytes": 2 * GB, "memory_bytes": 3 * GB}, 1, "well", ""),
        ({"memory_ready_bytes": 2 * GB, "memory_bytes": 5 * GB}, 1, "growing", "from 2.1 to 5.4 GB"),
        ({"memory_limit_bytes": 10 * GB, "memory_bytes": 9.5 * GB}, 1, "growing", "its limit is 10.7"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_the_condition_of_a_worker_follows_from_its_card_and_its_silence(
    fields: dict[str, Any], silent_s: float, condition: str, says: str
) -> None:
    member = FleetMember(card(**fields), silent_s)
    assert diagnose(member) == condition
    assert says in explain(member)
    assert diagnose(FleetMember(card(**fields), silent_s, WorkerEnd(1.0, "ended by signal 9"))) == "ended"


def test_a_silent_worker_is_said_once_for_all_web_processes_and_its_chunks_run_elsewhere(
    app_here: Flask, watch: WorkerWatch, caplog: pytest.LogCaptureFixture
) -> None:
    live = services_of(app_here)
    other_process = WorkerWatch(live)
    job = submit(live.store, live.blobs, ["x"] * 2)
    live.store.leases.dispatch(job.lane)
    claim = live.store.leases.claim(job.id, 0, "cpu-1@box#7")
    send_card(live.redis, card())
    send_card(live.redis, card("cpu-2@box#8"))
    freeze(app_here, "cpu-1@box#7", 8)
    with caplog.at_level(logging.WARNING):
        for process in (watch, other_process, watch):
            process.look()
            time.sleep(0.06)
        other_process.look()
    said = [record.message for record in caplog.records if "is silent" in record.message]
    assert len(said) == 1
    assert f"it holds chunk 0 of {job.id}" in said[0]
    events = live.store.listing.log(job.id)
    assert [event["event"] for event in events] == ["created", "started", "worker_silent", "worker_lost"]
    assert events[2]["worker"] == "cpu-1@box#7"
    (ticket,) = live.store.leases.dispatch(job.lane)
    again = live.store.leases.claim(job.id, ticket.chunk, "cpu-2@box#8")
    assert again.attempt == 2
    # The frozen one wakes up, after all: the first result counts, and only once.
    assert live.store.leases.complete(claim, make_completion(claim)) is Completed.OK
    assert live.store.leases.complete(again, make_completion(again)) is Completed.DUP
    assert live.store.get(job.id).counts.completed == 2


def test_a_worker_that_is_well_again_is_said_too(
    app_here: Flask, watch: WorkerWatch, caplog: pytest.LogCaptureFixture
) -> None:
    live = services_of(app_here)
    send_card(live.redis, card(pass_s=30.0))
    watch.look()
    time.sleep(0.06)
    with caplog.at_level(logging.WARNING):
        watch.look()
        send_card(live.redis, card())
        watch.look()
        watch.look()
    assert [record.message.split(":")[0] for record in caplog.records if "worker" in record.message] == [
        "worker cpu-1@box#7 is stuck",
        "worker cpu-1@box#7 is well again",
    ]


def test_while_no_other_worker_serves_the_chunks_stay_where_they_are(app_here: Flask, watch: WorkerWatch) -> None:
    live = services_of(app_here)
    job = submit(live.store, live.blobs, ["x"])
    live.store.leases.dispatch(job.lane)
    live.store.leases.claim(job.id, 0, "cpu-1@box#7")
    send_card(live.redis, card())
    freeze(app_here, "cpu-1@box#7", 8)
    watch.look()
    time.sleep(0.06)
    watch.look()
    assert live.store.chunk_table(job.id)[0].state == "claimed"


def test_a_moment_of_silence_is_no_condition(app_here: Flask, watch: WorkerWatch) -> None:
    live = services_of(app_here)
    for worker_id in ("cpu-1@box#7", "cpu-2@box#8"):
        send_card(live.redis, card(worker_id))
        freeze(app_here, worker_id, 60)
    watch.look()
    send_card(live.redis, card())
    time.sleep(0.06)
    watch.look()
    assert not live.redis.exists(keys.worker_alert("cpu-1@box#7"))
    assert live.redis.exists(keys.worker_alert("cpu-2@box#8"))


def test_health_and_metrics_name_the_condition_and_no_host(app_here: Flask, watch: WorkerWatch) -> None:
    live = services_of(app_here)
    send_card(live.redis, card(host="secret-host", worker_id="cpu-1@secret-host#7"))
    freeze(app_here, "cpu-1@secret-host#7", 20)
    client = app_here.test_client()
    answer = client.get("/health")
    (sick,) = (answer.json or {})["sick"]
    assert (sick["condition"], sick["device"]) == ("silent", "cpu")
    assert "secret-host" not in answer.text
    metrics = client.get("/metrics").text
    assert 'twolane_workers{condition="silent"} 1.0' in metrics
    assert 'twolane_workers{condition="well"} 0.0' in metrics
