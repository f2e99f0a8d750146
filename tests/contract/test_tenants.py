"""Two tenants of one server: nobody sees anything of the other, whatever it is; limits and rights of a key hold."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from app.batches.batch_scheduler import BatchScheduler
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.engine import Work
from tasks.errors import RateLimited, TooLarge
from tasks.interactive.client import InteractiveClient
from tasks.jobs.blobs import open_blobs
from tasks.jobs.store import JobStore
from tasks.lanes import Service
from tests.support.batch_requests import GOOD, embed, ndjson
from tests.support.job_maker import assert_expiry, begin, make_completion, submit
from tests.support.web import running_scheduler, running_worker, services_of, settings_of, write_keys

ORIGIN = "https://page.example"
KEYS = {
    "ada": "",
    "bob": "",
    "small": "max_queued_items = 100",
    "crowd": "max_queued_items = 100",
    "narrow": 'models = ["fake"]\npriority = "low"',
    "vip": 'priority = "high"',
    "poor": "tokens_per_minute = 200\nrequests_per_minute = 50",
}


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    models = ("fake", "all-MiniLM-L6-v2")
    here = settings_of(
        server, folder, keys_file=write_keys(folder / "keys.toml", KEYS), chunk_items=20, cors_origins=ORIGIN
    )
    return here.model_copy(update={"models": models})


@pytest.fixture(scope="module")
def working(app_here: Flask, settings_here: Settings) -> Iterator[Flask]:
    with running_worker(settings_here.model_copy(update={"models": ("fake",)})), running_scheduler(app_here):
        yield app_here


class Caller:
    """One tenant's client."""

    def __init__(self, app: Flask, key: str) -> None:
        self._client: FlaskClient = app.test_client()
        self._headers = {"Authorization": f"Bearer {key}"}

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        headers = {**self._headers, **options.pop("headers", {})}
        return self._client.open(path, method=method, headers=headers, **options)

    def upload(self, lines: list[Any]) -> str:
        head = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        head += b'--B\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
        form = head + ndjson(lines) + b"\r\n--B--\r\n"
        answer = self("POST", "/v1/files", data=form, content_type="multipart/form-data; boundary=B")
        file_id: str = answer.json["id"]
        return file_id

    def batch(self, lines: list[Any], **headers: str) -> dict[str, Any]:
        body = {"input_file_id": self.upload(lines), "endpoint": "/v1/embeddings", "completion_window": "24h"}
        answer = self("POST", "/v1/batches", json=body, headers=headers)
        assert answer.status_code == 200, answer.json
        return dict(answer.json)

    def job(self, items: int, **headers: str) -> Any:
        body = {"type": "embeddings", "model": "fake", "input": [f"text {i}" for i in range(items)]}
        return self("POST", "/v1/jobs", json=body, headers={"Prefer": "respond-async", **headers})


@pytest.fixture
def ada(app_here: Flask) -> Caller:
    return Caller(app_here, "ada")


@pytest.fixture
def bob(app_here: Flask) -> Caller:
    return Caller(app_here, "bob")


def test_nothing_of_one_tenant_can_be_seen_or_changed_by_another(ada: Caller, bob: Caller) -> None:
    job, file_id, batch = ada.job(3).json["id"], ada.upload([GOOD]), ada.batch([GOOD])["id"]
    mine = [
        ("GET", f"/v1/jobs/{job}"),
        ("GET", f"/v1/jobs/{job}/results"),
        ("GET", f"/v1/jobs/{job}/events"),
        ("POST", f"/v1/jobs/{job}/pause"),
        ("POST", f"/v1/jobs/{job}/resume"),
        ("POST", f"/v1/jobs/{job}/cancel"),
        ("DELETE", f"/v1/jobs/{job}"),
        ("GET", f"/v1/files/{file_id}"),
        ("GET", f"/v1/files/{file_id}/content"),
        ("DELETE", f"/v1/files/{file_id}"),
        ("GET", f"/v1/batches/{batch}"),
        ("POST", f"/v1/batches/{batch}/cancel"),
    ]
    for method, path in mine:
        answer = bob(method, path)
        assert answer.status_code == 404, (method, path, answer.json)
    for path in ("/v1/jobs", "/v1/files", "/v1/batches"):
        assert bob("GET", path).json["data"] == [], path
        assert ada("GET", path).json["data"] != [], path
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert bob("POST", "/v1/batches", json=body).status_code == 404
    assert ada("GET", f"/v1/jobs/{job}").json["status"] == "queued"


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/livez/", "/readyz", "/health", "/docs", "/openapi.json", "/docs/assets/x", "/static/x"]
)
def test_pages_and_probes_need_no_key(app_here: Flask, path: str) -> None:
    assert app_here.test_client().get(path).status_code in {200, 404, 503}


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/v1/models",
        "/v1/jobs",
        "/v1/files",
        "/v1/batches",
        "/docsx",
    ],
)
def test_everything_else_does(app_here: Flask, path: str) -> None:
    answer = app_here.test_client().get(path)
    assert (answer.status_code, (answer.json or {})["error"]["code"]) == (401, "invalid_api_key")


def test_an_idempotency_key_is_the_tenants_own(ada: Caller, bob: Caller) -> None:
    key = {"Idempotency-Key": "same"}
    first, again, other = ada.job(2, **key).json["id"], ada.job(2, **key).json["id"], bob.job(2, **key).json["id"]
    assert first == again != other
    assert ada.batch([GOOD])["id"] != bob.batch([GOOD])["id"]


def test_a_tenants_queue_is_limited(app_here: Flask) -> None:
    small = Caller(app_here, "small")
    first = small.job(60)
    assert first.status_code == 202
    refused = small.job(41)
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert small.job(40).status_code == 202
    too_large = small.job(101)
    assert (too_large.status_code, too_large.json["error"]["code"]) == (413, "request_too_large")
    # A job that ends makes room, and so does one that was refused.
    small("DELETE", f"/v1/jobs/{first.json['id']}")
    assert small.job(60).status_code == 202
    assert Caller(app_here, "ada").job(101).status_code == 202


def test_the_queue_limit_holds_for_jobs_that_are_created_at_once(app_here: Flask) -> None:
    crowd = Caller(app_here, "crowd")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: crowd.job(9), range(20)))
    assert sorted(answer.status_code for answer in answers) == [202] * 11 + [429] * 9


def test_the_jobs_of_a_batch_are_reserved_together_or_not_at_all(app_here: Flask, redis: Redis) -> None:
    store = services_of(app_here).store

    def reserve(number: int) -> bool:
        try:
            store.reserve_queue("group", {f"job_{number}a": 2, f"job_{number}b": 1}, 10)
        except RateLimited:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        reserved = list(pool.map(reserve, range(40)))
    assert reserved.count(True) == 3
    assert redis.hlen(keys.tenant_queued("group")) == 6
    taken = reserved.index(True)
    assert reserve(taken), "a call whose answer was lost is repeated"
    with pytest.raises(TooLarge):
        store.reserve_queue("group", {"job_x": 6, "job_y": 5}, 10)
    with pytest.raises(RateLimited, match="limit is 10 queued items; 9 are waiting"):
        store.reserve_queue("group", {"job_x": 1, "job_y": 1}, 10)
    store.release_queue("group", [f"job_{taken}a", f"job_{taken}b"])
    store.reserve_queue("group", {"job_x": 4}, 10)


def test_items_that_are_done_leave_the_queue_and_a_job_is_counted_once(redis: Redis, settings: Settings) -> None:
    store, blobs = JobStore(redis, settings), open_blobs(redis, settings)
    store.reserve_queue("default", {"job_1": 4}, 10)
    job, claim = begin(store, blobs, ["a", "b", "c", "d"], id="job_1", queue_limit=10)
    submit(store, blobs, ["e"] * 6, queue_limit=10)
    with pytest.raises(RateLimited, match="10 are waiting"):
        submit(store, blobs, ["f"], queue_limit=10)
    for _ in range(2):
        store.leases.complete(claim, make_completion(claim))
    submit(store, blobs, ["f"] * 2, queue_limit=10)
    with pytest.raises(RateLimited, match="10 are waiting"):
        submit(store, blobs, ["g"], queue_limit=10)
    store.cancel(job.id)
    submit(store, blobs, ["g"] * 2, queue_limit=10)
    assert_expiry(redis)


def test_a_job_that_expired_in_the_queue_makes_room(redis: Redis, settings: Settings) -> None:
    store, blobs = JobStore(redis, settings), open_blobs(redis, settings)
    job = submit(store, blobs, ["a"] * 10, queue_limit=10)
    long_ago_ms = int((job.created_at - settings.job_ttl_s - 1) * 1000)
    redis.hset(keys.tenant_queued("default"), job.id, f"10 {long_ago_ms}")
    submit(store, blobs, ["b"] * 10, queue_limit=10)
    assert redis.hlen(keys.tenant_queued("default")) == 1


def test_a_batch_over_the_queue_limit_fails_and_says_why(app_here: Flask) -> None:
    lone = Caller(app_here, "small")
    batch = lone.batch([embed(f"l{i}", ["x"] * 3) for i in range(50)])
    BatchScheduler(services_of(app_here)).run_once()
    failed = lone("GET", f"/v1/batches/{batch['id']}").json
    assert failed["status"] == "failed"
    assert "limit is 100 queued items" in failed["errors"]["data"][0]["message"]


def test_a_key_uses_only_its_models(app_here: Flask) -> None:
    narrow = Caller(app_here, "narrow")
    assert [model["id"] for model in narrow("GET", "/v1/models").json["data"]] == ["fake"]
    for method, path, body in (
        ("POST", "/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "x"}),
        ("POST", "/v1/rerank", {"model": "all-MiniLM-L6-v2", "query": "q", "documents": ["x"]}),
        ("POST", "/v1/jobs", {"model": "all-MiniLM-L6-v2", "type": "embeddings", "input": ["x"]}),
        ("GET", "/v1/models/all-MiniLM-L6-v2", None),
    ):
        answer = narrow(method, path, json=body)
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "model_not_found"), path
    assert narrow.job(3).json["priority"] == "low"


def test_a_batch_knows_the_rights_of_the_key_that_made_it(working: Flask) -> None:
    narrow = Caller(working, "narrow")
    batch = narrow.batch([GOOD, embed("foreign", "x", model="all-MiniLM-L6-v2")])
    while (now := narrow("GET", f"/v1/batches/{batch['id']}").json)["status"] != "completed":
        assert now["status"] in {"validating", "in_progress", "finalizing"}
    assert now["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert b"model_not_found" in narrow("GET", f"/v1/files/{now['error_file_id']}/content").data


def test_tokens_are_charged_for_calls_that_are_answered_at_once(working: Flask) -> None:
    poor = Caller(working, "poor")
    answer = poor("POST", "/v1/embeddings", json={"model": "fake", "input": "a few words"})
    assert answer.status_code == 200, answer.json
    assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "49"
    body = {"model": "fake", "input": ["many words here " * 10] * 4}
    assert poor("POST", "/v1/embeddings", json=body).status_code == 200
    refused = poor("POST", "/v1/embeddings", json=body)
    assert refused.status_code == 429, refused.json
    assert refused.headers["x-ratelimit-limit-tokens"] == "200"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    # What is queued is limited by its own setting.
    assert poor.job(50).status_code == 202


def test_pages_of_the_named_origin_may_call_from_browsers_and_no_others(app_here: Flask) -> None:
    client = app_here.test_client()
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    allowed = client.options("/v1/embeddings", headers={"Origin": ORIGIN, **asks})
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()
    refused = client.options("/v1/embeddings", headers={"Origin": "https://other.example", **asks})
    assert "Access-Control-Allow-Origin" not in refused.headers
    without_key = client.post("/v1/embeddings", headers={"Origin": ORIGIN}, json={"model": "fake", "input": "a"})
    assert (without_key.status_code, without_key.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    answer = client.get("/v1/models", headers={"Origin": ORIGIN, "Authorization": "Bearer ada"})
    assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    ("key", "priority", "service", "urgent"),
    [
        ("ada", None, Service.INTERACTIVE, False),
        ("ada", "low", Service.BULK, False),
        ("ada", "high", Service.INTERACTIVE, False),
        ("vip", None, Service.INTERACTIVE, False),
        ("vip", "high", Service.INTERACTIVE, True),
        ("vip", -1, Service.INTERACTIVE, True),
        ("vip", 5, Service.BULK, False),
    ],
)
def test_a_call_goes_first_or_last_as_far_as_its_key_may(
    working: Flask, monkeypatch: pytest.MonkeyPatch, key: str, priority: Any, service: Service, urgent: bool
) -> None:
    asked: list[Work] = []
    ask = InteractiveClient.ask
    monkeypatch.setattr(
        InteractiveClient, "ask", lambda client, work, *more: asked.append(work) or ask(client, work, *more)
    )
    for path, fields in (("embeddings", {"input": "a"}), ("rerank", {"query": "a", "documents": ["b"]})):
        body = {"model": "fake", "priority": priority, **fields}
        assert Caller(working, key)("POST", f"/v1/{path}", json=body).status_code == 200
    assert [(work.service, work.urgent) for work in asked] == [(service, urgent)] * 2
