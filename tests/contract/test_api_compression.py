"""Answers are packed when the caller asks and it pays."""

import json
import zlib
from collections.abc import Callable

import pytest
import zstandard
from flask import Response
from flask.testing import FlaskClient

UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.decompress(data, 31),
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


def embed(client: FlaskClient, count: int, accept: str) -> Response:
    body = {"model": "fake", "input": [f"text {i}" for i in range(count)]}
    return client.post("/v1/embeddings", json=body, headers={"Accept-Encoding": accept})


@pytest.mark.parametrize(
    ("accept", "packing"),
    [("gzip", "gzip"), ("zstd", "zstd"), ("gzip, deflate, br, zstd", "zstd"), ("gzip, zstd;q=0", "gzip")],
)
def test_a_large_answer_is_packed_as_asked_and_holds_the_same(client: FlaskClient, accept: str, packing: str) -> None:
    plain, packed = embed(client, 200, "identity"), embed(client, 200, accept)
    assert packed.headers["Content-Encoding"] == packing
    assert int(packed.headers["Content-Length"]) == len(packed.data) < len(plain.data) * 0.6
    assert UNPACK[packing](packed.data) == plain.data


@pytest.mark.parametrize(
    ("count", "accept"), [(1, "gzip, zstd"), (200, ""), (200, "identity"), (200, "br"), (200, "*")]
)
def test_small_answers_and_those_nobody_wants_packed_stay_plain(client: FlaskClient, count: int, accept: str) -> None:
    answer = embed(client, count, accept)
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert len((answer.json or {})["data"]) == count


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_streamed_results_are_packed_and_files_of_vectors_are_not(client: FlaskClient, packing: str) -> None:
    body = {"type": "embeddings", "model": "fake", "input": [f"text {i}" for i in range(50)]}
    job_id = (client.post("/v1/jobs", json=body).json or {})["id"]
    headers = {"Accept-Encoding": packing}
    lines = client.get(f"/v1/jobs/{job_id}/results?format=ndjson", headers=headers)
    assert lines.headers["Content-Encoding"] == packing
    assert [json.loads(line)["index"] for line in UNPACK[packing](lines.data).splitlines()] == list(range(50))
    for form in ("npy", "arrow", "parquet"):
        answer = client.get(f"/v1/jobs/{job_id}/results?format={form}", headers=headers)
        assert "Content-Encoding" not in answer.headers
