"""Webhooks over HTTP: a real receiver is told of the ends of real jobs."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from app.jobs.webhooks import WebhookDispatcher
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.jobs.job import Webhook
from tasks.jobs.outbox import Attempt, Outbox
from tests.support import job_maker
from tests.support.web import opened_app, services_of, settings_of, wait_for_end
from tests.support.webhook_receiver import Receiver, receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CORPUS = [f"passage number {i}" for i in range(300)]


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    fields = {"webhook_allow_private": True, "webhook_retry_s": 0.05, "webhook_timeout_s": 1.0}
    return settings_of(server, tmp_path_factory.mktemp("data"), chunk_items=100, **fields)


@pytest.fixture
def courier(app_here: Flask) -> Iterator[WebhookDispatcher]:
    running = WebhookDispatcher(services_of(app_here))
    running.start()
    yield running
    running.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def submit(client: FlaskClient, webhook: Any, texts: Any = CORPUS, **headers: str) -> Any:
    body = {"type": "embeddings", "model": "fake", "input": texts, "webhook": webhook}
    return client.post("/v1/jobs", json=body, headers=headers)


def wait_for_status(client: FlaskClient, job_id: str, *wanted: str) -> dict[str, Any]:
    for _ in range(600):
        state: dict[str, Any] = (client.get(f"/v1/jobs/{job_id}").json or {})["webhook"]
        if state["status"] in wanted:
            return state
        threading.Event().wait(0.02)
    raise AssertionError(state)


def test_the_end_of_a_queued_job_is_told_once_and_signed(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    answer = submit(client, {"url": receiver.url, "secret": SECRET})
    assert answer.status_code == 202
    assert "secret" not in answer.json["webhook"]
    job_id = answer.json["id"]
    receiver.wait_for(1)
    message = receiver.read(SECRET)
    assert message["type"] == "job.succeeded"
    assert message["data"]["id"] == job_id
    assert message["data"]["counts"]["completed"] == len(CORPUS)
    headers, body = receiver.calls[0]
    assert headers["webhook-id"].startswith("msg_")
    assert headers["content-type"] == "application/json"
    assert SECRET.encode() not in body
    state = wait_for_status(client, job_id, "delivered")
    assert (state["attempts"], state["answer"], state["error"], state["next_attempt_at"]) == (1, 204, None, None)
    assert len(receiver.calls) == 1


def test_a_secret_that_is_made_here_is_shown_once(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    key = {"Idempotency-Key": "a key for a webhook"}
    first, again = (submit(client, {"url": receiver.url}, **key) for _ in range(2))
    secret = first.json["webhook"]["secret"]
    assert again.json["id"] == first.json["id"]
    assert "secret" not in again.json["webhook"]
    shown = client.get(f"/v1/jobs/{first.json['id']}").data + client.get("/v1/jobs").data
    assert secret.encode() not in shown
    receiver.wait_for(1)
    assert receiver.read(secret)["data"]["id"] == first.json["id"]


def test_a_job_that_is_answered_at_once_tells_its_end_too(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    answer = submit(client, {"url": receiver.url, "secret": SECRET}, ["one text"])
    assert answer.status_code == 200
    receiver.wait_for(1)
    assert receiver.read(SECRET)["data"]["id"] == answer.json["id"]


def test_an_upload_names_its_webhook_in_headers(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    headers = {"Webhook-Url": receiver.url, "Webhook-Secret": SECRET, "Prefer": "respond-async"}
    lines = b"\n".join(json.dumps(text).encode() for text in CORPUS)
    answer = client.post("/v1/jobs?model=fake", data=lines, content_type="application/x-ndjson", headers=headers)
    assert answer.status_code == 202, answer.json
    receiver.wait_for(1)
    assert receiver.read(SECRET)["type"] == "job.succeeded"


def test_a_receiver_that_fails_is_told_again_with_the_same_id(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    receiver.answers = [500, 302]
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}).json["id"]
    retrying = wait_for_status(client, job_id, "retrying")
    assert retrying["answer"] == 500
    assert retrying["next_attempt_at"] > retrying["last_attempt_at"]
    # The third delay is longer than a test; the second attempt shows that a redirect is a failure and not followed.
    receiver.wait_for(2)
    assert [json.loads(body)["type"] for _, body in receiver.calls] == ["job.succeeded"] * 2
    assert len({headers["webhook-id"] for headers, _ in receiver.calls}) == 1
    receiver.read(SECRET, 1)


def test_a_receiver_that_says_gone_is_not_asked_again(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    receiver.answers = [410]
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}).json["id"]
    assert wait_for_status(client, job_id, "failed")["answer"] == 410


def test_a_receiver_that_hangs_costs_its_time_limit(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    receiver.hold.clear()
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}).json["id"]
    state = wait_for_status(client, job_id, "retrying")
    assert (state["answer"], state["error"]) == (None, "the receiver did not answer in time")
    receiver.hold.set()
    assert wait_for_status(client, job_id, "delivered")["attempts"] >= 2


def test_receivers_that_hang_hold_up_nobody_but_their_tenant(app_here: Flask, receiver: Receiver) -> None:
    live = services_of(app_here)
    slow = WebhookDispatcher(replace(live, settings=live.settings.model_copy(update={"webhook_timeout_s": 30.0})))
    receiver.hold.clear()
    with receiving() as other:
        for tenant, url in [("ada", receiver.url)] * 40 + [("bob", other.url)]:
            job = job_maker.submit(live.store, live.blobs, ["x"], tenant=tenant, webhook=Webhook(url, SECRET))
            live.store.cancel(job.id, tenant)
        try:
            while slow.run_once():
                pass
            other.wait_for(1)
            assert 1 <= len(receiver.calls) < 16
        finally:
            receiver.hold.set()
            slow.close()
            live.redis.delete(keys.webhook_tenants())


def test_cancelled_and_expired_jobs_tell_their_end(
    client: FlaskClient, courier: WebhookDispatcher, receiver: Receiver
) -> None:
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}, [f"x{i}" for i in range(5000)]).json["id"]
    client.delete(f"/v1/jobs/{job_id}")
    ended = wait_for_end(client, job_id)
    receiver.wait_for(1)
    assert receiver.read(SECRET)["type"] == f"job.{ended['status']}"


def test_an_end_is_left_to_another_process_when_the_first_one_dies_over_it(
    app_here: Flask, client: FlaskClient, receiver: Receiver, redis_now: Redis
) -> None:
    """What a kill between taking and sending leaves is exactly this: an end that was taken and never settled."""
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}).json["id"]
    wait_for_end(client, job_id)
    outbox = Outbox(redis_now, services_of(app_here).settings)
    (taken,) = outbox.take(10)
    assert (taken.job.id, taken.event, taken.attempts) == (job_id, "succeeded", 0)
    assert outbox.take(10) == []
    courier = WebhookDispatcher(services_of(app_here))
    courier.start()
    try:
        receiver.wait_for(1)
        state = wait_for_status(client, job_id, "delivered")
        # The dead one wakes up after all and says that it failed: what was told stays told.
        outbox.settle(taken, Attempt(error="late"))
        assert (client.get(f"/v1/jobs/{job_id}").json or {})["webhook"] == state
    finally:
        courier.close()
    assert redis_now.zcard(keys.webhooks_due("default")) == 0


def test_a_deleted_job_is_not_told(app_here: Flask, client: FlaskClient, receiver: Receiver, redis_now: Redis) -> None:
    live = services_of(app_here)
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}).json["id"]
    wait_for_end(client, job_id)
    (taken,) = Outbox(redis_now, live.settings).take(10)
    live.store.delete(job_id)
    assert Outbox(redis_now, live.settings).settle(taken, Attempt(answer=204)) == "delivered"
    assert redis_now.zcard(keys.webhooks_due("default")) == 0
    assert redis_now.exists(keys.job(job_id)) == 0


@pytest.fixture
def redis_now(server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.delete(keys.webhooks_due("default"))
        yield client


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://[::ffff:10.0.0.1]/", "http://localhost/", "ftp://x/"])
def test_a_url_that_leads_inside_is_refused_before_anything_is_stored(
    app_here: Flask, settings_here: Settings, client: FlaskClient, url: str
) -> None:
    strict = settings_here.model_copy(update={"webhook_allow_private": False})
    with opened_app(strict) as app:
        answer = submit(app.test_client(), {"url": url})
    assert answer.status_code == 400
    assert answer.json["error"]["param"] == "webhook.url"


@pytest.mark.parametrize("secret", ["short", "whsec_", "whsec_AAAA", "whsec_" + "!" * 40])
def test_a_secret_of_another_form_is_refused_and_not_repeated(client: FlaskClient, secret: str) -> None:
    answer = submit(client, {"url": "https://example.com/", "secret": secret})
    assert answer.status_code == 400
    assert answer.json["error"]["param"] == "webhook.secret"
    assert secret not in answer.json["error"]["message"].replace("whsec_ and", "")


def test_a_url_that_was_allowed_once_is_not_sent_to_when_it_is_not_any_more(
    app_here: Flask, settings_here: Settings, client: FlaskClient, receiver: Receiver
) -> None:
    job_id = submit(client, {"url": receiver.url, "secret": SECRET}).json["id"]
    wait_for_end(client, job_id)
    strict = settings_here.model_copy(update={"webhook_allow_private": False})
    with opened_app(strict) as app:
        courier = WebhookDispatcher(services_of(app))
        courier.start()
        state = wait_for_status(client, job_id, "failed")
        courier.close()
    assert "not public" in state["error"]
    assert receiver.calls == []
