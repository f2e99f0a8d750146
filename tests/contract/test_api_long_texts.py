"""`long` and windows of documents over HTTP: in calls, jobs of every form, and batches; with the fake model."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support import batch_requests
from tests.support.web import NDJSON, running_scheduler, wait_for_end

# The fake model reads 512 tokens, a word each and two special ones; so windows are plain arithmetic.
WORDS = [f"w{at}" for at in range(1300)]
LONG = " ".join(WORDS)
TEXTS = ["alpha", LONG, " ".join(WORDS[:30])]
FIELDS = {"long": "chunks", "chunk_tokens": 100, "overlap_tokens": 20}


def embed(client: FlaskClient, texts: list[str], **fields: Any) -> Any:
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": texts, **fields})
    assert answer.status_code == 200, answer.json
    return answer.json


def parts_by_hand(words: list[str], size: int, overlap: int) -> list[str]:
    starts = range(0, max(1, len(words) - overlap), size - overlap)
    return [" ".join(words[start : start + size]) for start in starts]


@pytest.fixture(scope="module")
def expected(client: FlaskClient) -> list[list[dict[str, Any]]]:
    """The chunks of each text: where they are, and the vectors that their texts have by themselves."""
    chunks = []
    for text in TEXTS:
        parts = parts_by_hand(text.split(), 100, 20)
        vectors = [entry["embedding"] for entry in embed(client, parts)["data"]]
        starts = [text.index(part) for part in parts]
        chunks.append(
            [
                {"start": start, "end": start + len(part), "embedding": vector}
                for start, part, vector in zip(starts, parts, vectors, strict=True)
            ]
        )
    return chunks


def test_a_call_gives_chunks_in_place_of_the_embedding(client: FlaskClient, expected: Any) -> None:
    answer = embed(client, TEXTS, **FIELDS)
    assert [entry["chunks"] for entry in answer["data"]] == expected
    assert all("embedding" not in entry for entry in answer["data"])
    assert [entry["truncated"] for entry in answer["data"]] == [False] * 3
    words = sum(len(part.split()) + 2 for text in TEXTS for part in parts_by_hand(text.split(), 100, 20))
    assert answer["usage"]["prompt_tokens"] == words
    short = embed(client, TEXTS, **FIELDS, output_dtype="int8", dimensions=8)["data"][1]["chunks"]
    whole = embed(client, [part["embedding"] and LONG[part["start"] : part["end"]] for part in short], dimensions=8)
    for part, entry in zip(short, whole["data"], strict=True):
        vector = np.array(entry["embedding"])
        assert part["embedding"] == np.rint(vector / np.abs(vector).max() * 127).tolist()


def test_the_mean_and_the_largest_are_over_all_windows(client: FlaskClient, expected: Any) -> None:
    vectors = np.array([part["embedding"] for part in expected[1]])
    counts = [len(LONG[part["start"] : part["end"]].split()) + 2 for part in expected[1]]
    for pooling, by_hand in (("mean", np.average(vectors, axis=0, weights=counts)), ("max", vectors.max(axis=0))):
        found = embed(client, TEXTS, **{**FIELDS, "long": pooling})["data"]
        np.testing.assert_allclose(found[1]["embedding"], by_hand / np.linalg.norm(by_hand), atol=1e-6)
        assert found[0]["embedding"] == embed(client, ["alpha"])["data"][0]["embedding"]
        assert found[1]["tokens"] == sum(counts)


def job_of(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    lines = "".join(json.dumps(text) + "\n" for text in TEXTS)
    query = "&".join(f"{name}={value}" for name, value in {**FIELDS, **fields}.items())
    headers = {"Prefer": "respond-async"}
    answer = client.post(f"/v1/jobs?model=fake&{query}", data=lines, content_type=NDJSON, headers=headers)
    assert answer.status_code == 202, answer.json
    job = wait_for_end(client, (answer.json or {})["id"])
    assert (job["status"], job["counts"]["completed"], job["counts"]["truncated"]) == ("succeeded", 3, 0)
    return job


def test_a_job_has_the_same_chunks_in_every_form(client: FlaskClient, expected: Any) -> None:
    job = job_of(client)
    assert job["params"]["long"] == "chunks"
    assert job["tokens"] == embed(client, TEXTS, **FIELDS)["usage"]["prompt_tokens"]
    results = f"/v1/jobs/{job['id']}/results"
    page = client.get(results).json or {}
    assert [row["chunks"] for row in page["data"]] == expected
    lines = client.get(f"{results}?format=ndjson").text.splitlines()
    assert [json.loads(line)["chunks"] for line in lines] == expected
    arrow = pa.ipc.open_file(client.get(f"{results}?format=arrow").data).read_all()
    parquet = pq.read_table(io.BytesIO(client.get(f"{results}?format=parquet").data))
    for table in (arrow, parquet):
        assert "embedding" not in table.column_names
        for row, chunks in zip(table.to_pylist(), expected, strict=True):
            assert [(part["start"], part["end"]) for part in row["chunks"]] == [
                (part["start"], part["end"]) for part in chunks
            ]
            np.testing.assert_allclose(
                [part["embedding"] for part in row["chunks"]], [part["embedding"] for part in chunks], rtol=1e-6
            )
    assert client.get(f"{results}?format=npy").status_code == 400
    half = client.get(f"/v1/jobs/{job_of(client, dtype='float16')['id']}/results?format=arrow").data
    assert "halffloat" in str(pa.ipc.open_file(half).schema.field("chunks").type)


def test_a_job_of_small_size_and_a_pooled_one_give_what_calls_give(client: FlaskClient, expected: Any) -> None:
    body = {"type": "embeddings", "model": "fake", "input": TEXTS, **FIELDS}
    answered = client.post("/v1/jobs", json=body)
    assert answered.status_code == 200
    assert [row["chunks"] for row in (answered.json or {})["results"]] == expected
    pooled = job_of(client, long="mean")
    rows = np.load(io.BytesIO(client.get(f"/v1/jobs/{pooled['id']}/results?format=npy").data))
    calls = embed(client, TEXTS, **{**FIELDS, "long": "mean"})["data"]
    np.testing.assert_allclose(rows, [entry["embedding"] for entry in calls], atol=1e-6)


def test_a_document_has_the_score_of_its_best_window(client: FlaskClient) -> None:
    def scores(documents: list[str], **fields: Any) -> list[float]:
        body = {"model": "fake", "query": "q", "documents": documents, **fields}
        answer = client.post("/v1/rerank", json=body)
        assert answer.status_code == 200, answer.json
        by_index = {row["index"]: row["relevance_score"] for row in (answer.json or {})["results"]}
        return [by_index[at] for at in range(len(documents))]

    windows = parts_by_hand(WORDS, 510, 50)
    alone = scores(windows)
    assert len(alone) == 3
    assert scores([LONG, "alpha"], max_chunks_per_doc=10, overlap_tokens=50) == [max(alone), *scores(["alpha"])]
    assert scores([LONG], max_chunks_per_doc=2, overlap_tokens=50) == [max(alone[:2])]
    assert scores([LONG], max_chunks_per_doc=2, overlap_tokens=50, truncate="start") == [max(alone[1:])]
    assert scores([LONG], max_tokens_per_doc=60) == scores([" ".join(WORDS[:60])])
    body = {"type": "rerank", "model": "fake", "query": "q", "documents": [LONG, "alpha"]}
    job = client.post("/v1/jobs", json={**body, "max_chunks_per_doc": 10, "overlap_tokens": 50}).json or {}
    assert job["results"][0]["relevance_score"] == max(alone)


def test_documents_of_more_windows_than_are_read_are_truncated_or_refused(client: FlaskClient) -> None:
    body = {"model": "fake", "query": "q", "documents": [LONG, "alpha"], "max_chunks_per_doc": 2}
    assert client.post("/v1/rerank", json=body).headers["x-truncated-items"] == "1"
    assert client.post("/v1/rerank", json={**body, "max_chunks_per_doc": 9}).headers["x-truncated-items"] == "0"
    refused = client.post("/v1/rerank", json={**body, "truncate": "none"})
    assert (refused.status_code, (refused.json or {})["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/embeddings", {"chunk_tokens": 100}, "chunk_tokens"),
        ("/v1/embeddings", {"overlap_tokens": 5}, "overlap_tokens"),
        ("/v1/embeddings", {"long": "sum"}, "long"),
        ("/v1/embeddings", {"long": "mean", "chunk_tokens": 15}, "chunk_tokens"),
        ("/v1/embeddings", {"long": "mean", "chunk_tokens": 40, "overlap_tokens": 21}, "overlap_tokens"),
        ("/v1/embeddings", {"long": "chunks", "chunk_tokens": 16, "input": [LONG] * 70}, "input"),
        ("/v1/rerank", {"overlap_tokens": 65}, "overlap_tokens"),
        ("/v1/rerank", {"max_tokens_per_doc": 60, "max_chunks_per_doc": 3}, "max_tokens_per_doc"),
        ("/v1/jobs", {"type": "embeddings", "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
        ("/v1/jobs", {"type": "rerank", "long": "mean"}, "long"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_fields_that_do_not_go_together_are_refused(
    client: FlaskClient, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "fake", "input": "a", "query": "a", "documents": ["a"], **fields}
    answer = client.post(path, json=body)
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, param)


def test_lines_of_a_batch_have_their_chunks(app_here: Flask, client: FlaskClient, expected: Any) -> None:
    with running_scheduler(app_here):
        batch = batch_requests.run(client, [batch_requests.embed("one", TEXTS, **FIELDS)])
    body = batch_requests.body_of(batch_requests.read(client, batch["output_file_id"])["one"])
    assert [entry["chunks"] for entry in body["data"]] == expected
    assert body["usage"] == embed(client, TEXTS, **FIELDS)["usage"]


def test_bytes_have_no_place_for_chunks(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/embeddings", json={"model": "fake", "input": TEXTS, **FIELDS}, headers={"Accept": "application/x-npy"}
    )
    assert answer.status_code == 400
