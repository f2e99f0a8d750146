"""The same audit after every fault, from outside: over HTTP, and in the keys of the server.

- `completed + failed == total` exactly when the job has ended by itself;
- every submitted item has exactly one outcome, under its own id, and a vector is that of its own text;
- no lease, no turn and no reservation of the job is left;
- no key of ours is without an expiry.
"""

import json
import time
import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from redis import Redis

from config.catalog import ModelCard
from tasks import keys
from tasks.lanes import Lane, Service
from tests.support.fakes import fake_card
from workers.models.backends.fake import FakeBackend, FakeTokenizer

__all__ = ["ENDED", "audit", "audit_job", "audit_job_keys", "audit_keys", "call", "submit", "wait_for_end"]

ENDED = {"succeeded", "failed", "cancelled", "expired"}
_DIMENSION = 16


def call(http: httpx.Client, method: str, path: str, within_s: float = 60, **options: Any) -> httpx.Response:
    """Call as an SDK does: again while nobody answers or the answer is 429 or 503."""
    until_s = time.monotonic() + within_s
    while True:
        try:
            answer = http.request(method, path, **options)
            if answer.status_code not in {429, 503}:
                return answer
            reason = answer.text
        except httpx.TransportError as error:
            reason = repr(error)
        assert time.monotonic() < until_s, reason
        time.sleep(0.1)


def submit(http: httpx.Client, texts: Sequence[str], key: str = "", **params: str) -> str:
    """Queue the texts as a job, however often it takes, and return its id."""
    lines = b"".join(json.dumps({"id": f"i{i}", "text": text}).encode() + b"\n" for i, text in enumerate(texts))
    headers = {
        "Content-Type": "application/x-ndjson",
        "Prefer": "respond-async",
        "Idempotency-Key": key or uuid.uuid4().hex,
    }
    answer = call(http, "POST", "/v1/jobs", params={"model": "fake", **params}, content=lines, headers=headers)
    assert answer.status_code in {200, 202}, answer.text
    return str(answer.json()["id"])


def wait_for_end(http: httpx.Client, job_id: str, timeout_s: float = 100) -> dict[str, Any]:
    """The job object when the job has ended."""
    until_s = time.monotonic() + timeout_s
    while True:
        job = dict(call(http, "GET", f"/v1/jobs/{job_id}", headers={"Prefer": "wait=2"}).json())
        if job["status"] in ENDED:
            return job
        done, total = job["counts"]["completed"] + job["counts"]["failed"], job["counts"]["total"]
        assert done < total, job
        assert time.monotonic() < until_s, job


def audit(http: httpx.Client, redis: Redis, job_id: str, texts: Sequence[str]) -> dict[str, Any]:
    """Check all that must hold of a job that has ended, and of all keys; return the job."""
    job = audit_job(http, redis, job_id, texts)
    audit_keys(redis)
    return job


def audit_job(http: httpx.Client, redis: Redis, job_id: str, texts: Sequence[str]) -> dict[str, Any]:
    """Check all that must hold of a job that has ended, and return it."""
    job = dict(call(http, "GET", f"/v1/jobs/{job_id}").json())
    assert job["status"] in ENDED, job
    rows = _read_rows(http, job_id)
    indexes = [row["index"] for row in rows]
    assert indexes == sorted(set(indexes))
    assert [row["id"] for row in rows] == [f"i{index}" for index in indexes]
    good = [row for row in rows if "embedding" in row]
    assert len(good) == job["counts"]["completed"]
    assert sum("error" in row for row in rows) == len(rows) - len(good) == job["counts"]["failed"]
    assert job["counts"]["total"] == len(texts)
    if job["status"] in {"succeeded", "failed"}:
        assert indexes == list(range(len(texts)))
    _check_vectors(good, texts)
    audit_job_keys(redis, job_id)
    return job


def audit_keys(redis: Redis) -> None:
    """Every key of ours has an expiry; the broker's own are Celery's business."""
    ours = [key for key in redis.scan_iter("*", count=1000) if not key.startswith(keys.BROKER_PREFIX.encode())]
    pipeline = redis.pipeline(transaction=False)
    for key in ours:
        pipeline.pttl(key)
    # -2: it has expired since it was listed.
    assert [key for key, left_ms in zip(ours, pipeline.execute(), strict=True) if left_ms == -1] == []


def _read_rows(http: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    params = {"format": "ndjson"}
    lines = call(http, "GET", f"/v1/jobs/{job_id}/results", params=params, timeout=60).text.splitlines()
    return [json.loads(line) for line in lines]


def _check_vectors(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    if rows:
        expected = np.stack([_vector(texts[row["index"]]) for row in rows])
        np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-5)


@cache
def _model() -> tuple[FakeTokenizer, FakeBackend]:
    card: ModelCard = fake_card(dimension=_DIMENSION, max_tokens=512)
    return FakeTokenizer(card), FakeBackend(card)


@cache
def _vector(text: str) -> NDArray[np.float32]:
    tokenizer, backend = _model()
    (encoded,) = tokenizer.encode([text], "end")
    return backend.run([encoded.tokens])[0]


def audit_job_keys(redis: Redis, job_id: str, slug: str = "fake", tenant: str = "default") -> None:
    """No lease, turn or reservation of the job is left; `slug`: of its model, as in the lane's name."""
    lane = Lane(slug, Service.BULK)
    for key in (keys.lane_inflight(lane), keys.lane_turns(lane, tenant), keys.lane_deadlines(lane)):
        assert [member for member in redis.zrange(key, 0, -1) if job_id.encode() in member] == [], key
    assert redis.hget(keys.store_reserved(), job_id) is None
    assert redis.zscore(keys.store_reserved_until(), job_id) is None
