"""The product as its users see it, over HTTP; and the reference that its vectors are compared with."""

import io
import json
import time
from functools import cache
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from config.catalog import load_catalog
from config.settings import Settings
from workers.models.downloads.fetch import fetch

__all__ = ["MODEL", "reference", "submit", "vectors", "wait_for_end"]

MODEL = "all-MiniLM-L6-v2"


@cache
def reference_model() -> Any:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds

    card = load_catalog().find(MODEL)
    assert card is not None
    return SentenceTransformer(str(fetch(card, Settings(_env_file=None))), device="cpu")


def reference(texts: list[str]) -> NDArray[np.float32]:
    return np.asarray(reference_model().encode(texts, normalize_embeddings=True), dtype=np.float32)


def wait_for_end(http: httpx.Client, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        job = http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=5"}).json()
        if job["status"] in {"succeeded", "failed", "cancelled", "expired"}:
            return dict(job)
    raise AssertionError(f"the job did not end in {timeout_s} s: {job}")


def submit(http: httpx.Client, texts: list[str], **params: str) -> dict[str, Any]:
    lines = "\n".join(json.dumps({"id": f"p{i}", "text": text}) for i, text in enumerate(texts))
    answer = http.post(
        "/v1/jobs",
        params={"type": "embeddings", "model": MODEL, **params},
        content=lines.encode(),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"].endswith(answer.json()["id"])
    return dict(answer.json())


def vectors(http: httpx.Client, job_id: str) -> NDArray[np.float32]:
    answer = http.get(f"/v1/jobs/{job_id}/results", params={"format": "npy"})
    assert answer.status_code == 200, answer.text
    return np.asarray(np.load(io.BytesIO(answer.content)))
