"""`return` over HTTP, in calls, jobs and batches: a tiny bge-m3 by the real interactive lane, engine and backend."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from FlagEmbedding import BGEM3FlagModel
from flask import Flask
from flask.testing import FlaskClient

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support import batch_requests
from tests.support.checkpoints import WORDS, make_checkpoint
from tests.support.web import NDJSON, running_scheduler, settings_of, wait_for_end

MODEL = "bge-m3"
TEXTS = [" ".join(WORDS[at : at + 1 + at % 7]) for at in range(90)]
ALL = ["dense", "sparse", "colbert"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Settings:
    fields = {**make_checkpoint("bge-m3", checkpoint), "rerank_by": "multi-vector", "backend": "torch"}
    folder = tmp_path_factory.mktemp("data")
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (folder / "models.toml").write_text("\n".join(["[[models]]", *lines]))
    settings = settings_of(server, folder, chunk_items=20, threads=2, dtype="float32", device="cpu")
    return settings.model_copy(update={"models": (MODEL,), "catalog_file": folder / "models.toml"})


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, Any]:
    flag = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")
    return dict(flag.encode(TEXTS, max_length=128, return_sparse=True, return_colbert_vecs=True))


def embed(client: FlaskClient, texts: list[str], **fields: Any) -> Any:
    answer = client.post("/v1/embeddings", json={"model": MODEL, "input": texts, **fields})
    assert answer.status_code == 200, answer.json
    return answer.json


def assert_equal(items: list[dict[str, Any]], expected: dict[str, Any], first: int = 0) -> None:
    """Each item has the kinds that it has as FlagEmbedding gives them."""
    for at, item in enumerate(items, first):
        if "embedding" in item:
            np.testing.assert_allclose(item["embedding"], expected["dense_vecs"][at], atol=1e-4)
        if "sparse" in item:
            weights = {token: float(weight) for token, weight in expected["lexical_weights"][at].items()}
            assert item["sparse"] == pytest.approx(weights, abs=1e-4)
        if "colbert" in item:
            np.testing.assert_allclose(item["colbert"], expected["colbert_vecs"][at], atol=1e-4)


def run_job(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"type": "embeddings", "model": MODEL, "input": TEXTS, **fields})
    assert answer.status_code == 202, answer.json
    job = wait_for_end(client, (answer.json or {})["id"])
    assert (job["status"], job["counts"]["completed"]) == ("succeeded", len(TEXTS))
    return job


@pytest.fixture(scope="module")
def job(client: FlaskClient) -> dict[str, Any]:
    return run_job(client, **{"return": ALL})


def read_lines(client: FlaskClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.get(f"/v1/jobs/{job['id']}/results?format=ndjson").data.splitlines()]


# -- in the call


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        (None, {"embedding"}),
        (["dense"], {"embedding"}),
        (["sparse"], {"sparse"}),
        ("colbert", {"colbert"}),
        (["colbert", "dense", "sparse", "dense"], {"embedding", "sparse", "colbert"}),
    ],
)
def test_a_call_answers_the_kinds_that_it_asks_for_under_their_keys(
    client: FlaskClient, expected: dict[str, Any], asked: Any, keys: set[str]
) -> None:
    body = embed(client, TEXTS[:9], **{"return": asked})
    assert all(set(item) == {"object", "index", "tokens", "truncated", *keys} for item in body["data"])
    assert_equal(body["data"], expected)


def test_base64_is_that_of_each_vector(client: FlaskClient) -> None:
    plain, packed = (embed(client, TEXTS[:2], **{"return": ALL}, encoding_format=how) for how in ("float", "base64"))
    for one, other in zip(plain["data"], packed["data"], strict=True):
        assert one["sparse"] == other["sparse"]
        got = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in other["colbert"]]
        np.testing.assert_allclose(got, one["colbert"], atol=1e-6)


def test_a_kind_that_the_model_lacks_is_refused_with_what_it_has(client: FlaskClient) -> None:
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/v1/jobs", {"type": "embeddings", "input": ["a"]})):
        answer = client.post(path, json={"model": "fake", "return": ["sparse"], **body})
        assert answer.status_code == 400
        error = (answer.json or {})["error"]
        assert error["param"] == "return"
        assert "it offers dense, rerank" in error["message"]


def test_a_call_is_bounded_where_every_token_has_a_vector(client: FlaskClient) -> None:
    body = {"model": MODEL, "input": TEXTS[:65], "return": ["colbert"]}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert "/v1/jobs" in (answer.json or {})["error"]["message"]
    assert len(embed(client, TEXTS[:65], **{"return": ["dense", "sparse"]})["data"]) == 65


def test_kinds_are_never_mixed_by_what_was_computed_before(client: FlaskClient, expected: dict[str, Any]) -> None:
    for asked in (["dense"], ALL, ["sparse"], ["dense"], ALL):
        body = embed(client, TEXTS[:5], **{"return": asked}, cache=True)
        keys = {"embedding" if kind == "dense" else kind for kind in asked}
        assert all(set(item) == {"object", "index", "tokens", "truncated", *keys} for item in body["data"])
        assert_equal(body["data"], expected)


# -- as a job


def test_pages_and_lines_of_a_job_hold_every_kind(
    client: FlaskClient, job: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert job["params"]["return"] == ALL
    page = client.get(f"/v1/jobs/{job['id']}/results?limit=30&after=19").json or {}
    assert [item["index"] for item in page["data"]] == list(range(20, 50))
    assert_equal(page["data"], expected, first=20)
    lines = read_lines(client, job)
    assert [line["index"] for line in lines] == list(range(len(TEXTS)))
    assert all({"embedding", "sparse", "colbert"} <= set(line) for line in lines)
    assert_equal(lines, expected)


def test_a_page_ends_early_where_token_vectors_are_many(
    client: FlaskClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.results._PAGE_VECTORS", 25)
    seen, after, pages = list[int](), -1, 0
    while True:
        page = client.get(f"/v1/jobs/{job['id']}/results?limit=50&after={after}").json or {}
        seen += [item["index"] for item in page["data"]]
        pages += 1
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen == list(range(len(TEXTS)))
    assert pages > 10


def test_arrow_and_parquet_have_columns_of_the_kinds_and_npy_has_the_dense_ones(
    client: FlaskClient, job: dict[str, Any], expected: dict[str, Any]
) -> None:
    address = f"/v1/jobs/{job['id']}/results"
    arrow = pa.ipc.open_file(client.get(f"{address}?format=arrow").data).read_all()
    parquet = pq.read_table(io.BytesIO(client.get(f"{address}?format=parquet").data))
    for table in (arrow, parquet):
        rows = table.to_pylist()
        for row in rows:
            row["sparse"] = {str(token): weight for token, weight in row["sparse"]}
        assert_equal(rows, expected)
    array = np.load(io.BytesIO(client.get(f"{address}?format=npy").data))
    np.testing.assert_allclose(array, expected["dense_vecs"], atol=1e-4)


def test_a_job_without_dense_vectors_says_which_forms_it_has(client: FlaskClient, expected: dict[str, Any]) -> None:
    lines = b"".join(json.dumps(text).encode() + b"\n" for text in TEXTS)
    query = f"model={MODEL}&return=sparse,colbert&dtype=float16"
    job = client.post(f"/v1/jobs?{query}", data=lines, content_type=NDJSON, headers={"Prefer": "wait=20"}).json or {}
    address = f"/v1/jobs/{job['id']}/results"
    refused = client.get(f"{address}?format=npy")
    assert (refused.status_code, (refused.json or {})["error"]["param"]) == (400, "format")
    table = pq.read_table(io.BytesIO(client.get(f"{address}?format=parquet").data))
    assert table.column_names == ["index", "id", "sparse", "colbert", "tokens", "truncated", "error"]
    items = read_lines(client, job)
    assert all("embedding" not in item for item in items)
    vectors = np.concatenate([item["colbert"] for item in items])
    np.testing.assert_allclose(vectors, np.concatenate(expected["colbert_vecs"]), atol=2e-3)


def test_failed_items_have_their_error_and_no_values(client: FlaskClient) -> None:
    texts = [*TEXTS[:70], " ".join(WORDS[:200]), "w1"]
    job = (
        client.post(
            "/v1/jobs",
            json={"type": "embeddings", "model": MODEL, "input": texts, "truncate": "none", "return": ALL},
            headers={"Prefer": "wait=20"},
        ).json
        or {}
    )
    assert job["counts"]["failed"] == 1
    items = read_lines(client, job)
    assert items[70]["error"]["code"] == "context_length_exceeded"
    assert not {"embedding", "sparse", "colbert"} & set(items[70])
    for form in ("arrows", "parquet"):
        data = client.get(f"/v1/jobs/{job['id']}/results?format={form}").data
        table = pa.ipc.open_stream(data).read_all() if form == "arrows" else pq.read_table(io.BytesIO(data))
        row = table.to_pylist()[70]
        assert (row["embedding"], row["sparse"], row["colbert"]) == (None, None, None)
        assert table.to_pylist()[71]["colbert"] == [pytest.approx(v, abs=1e-6) for v in items[71]["colbert"]]


def test_a_small_job_has_its_kinds_inline(client: FlaskClient, expected: dict[str, Any]) -> None:
    body = {"type": "embeddings", "model": MODEL, "input": TEXTS[:3], "return": ALL}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 200
    results = (answer.json or {})["results"]
    assert all({"embedding", "sparse", "colbert"} <= set(item) for item in results)
    assert_equal(results, expected)


def test_a_rerank_job_gives_no_vectors(client: FlaskClient) -> None:
    body = {"type": "rerank", "model": MODEL, "query": "w1", "documents": ["w2"], "return": ["sparse"]}
    answer = client.post("/v1/jobs", json=body)
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, "return")


def test_a_batch_answers_each_line_with_its_kinds(
    client: FlaskClient, app_here: Flask, expected: dict[str, Any]
) -> None:
    texts = {"dense": TEXTS[:2], "all": TEXTS[2:9], "sparse": TEXTS[9:30]}
    kinds = {"dense": None, "all": ALL, "sparse": ["sparse"]}
    lines = [batch_requests.embed(name, texts[name], MODEL, **{"return": kinds[name]}) for name in texts]
    lines += [batch_requests.embed("refused", "w1", **{"return": ["colbert"]})]
    with running_scheduler(app_here):
        batch = batch_requests.run(client, lines)
    output = batch_requests.read(client, batch["output_file_id"])
    assert list(output) == list(texts)
    data = {name: batch_requests.body_of(line)["data"] for name, line in output.items()}
    assert_equal(data["dense"], expected)
    assert_equal(data["all"], expected, first=2)
    assert_equal(data["sparse"], expected, first=9)
    assert [set(entries[0]) - {"object", "index", "tokens", "truncated"} for entries in data.values()] == [
        {"embedding"},
        {"embedding", "sparse", "colbert"},
        {"sparse"},
    ]
    refused = batch_requests.read(client, batch["error_file_id"])["refused"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "return")


# -- reranking by all kinds


def test_a_call_and_a_job_rank_by_the_weighted_score(client: FlaskClient, checkpoint: Path) -> None:
    model = client.get(f"/v1/models/{MODEL}").json or {}
    assert (model["rerank_by"], model["capabilities"]) == ("multi-vector", [*ALL, "rerank"])
    flag = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")
    pairs, ways = [(TEXTS[3], text) for text in TEXTS[:8]], [0.4, 0.2, 0.4]
    theirs = flag.compute_score(pairs, batch_size=1, weights_for_different_modes=ways)["colbert+sparse+dense"]
    expected = np.clip((1 + np.asarray(theirs)) / 2, 0, 1)
    body = {"model": MODEL, "query": TEXTS[3], "documents": TEXTS[:8]}
    for cache in (False, True, True):
        results = (client.post("/v1/rerank", json={**body, "cache": cache}).json or {})["results"]
        scores = {result["index"]: result["relevance_score"] for result in results}
        assert [scores[at] for at in range(8)] == pytest.approx(expected, abs=1e-4)
    job = client.post("/v1/jobs", json={"type": "rerank", **body}, headers={"Prefer": "respond-async"}).json or {}
    wait_for_end(client, job["id"])
    assert [line["relevance_score"] for line in read_lines(client, job)] == pytest.approx(expected, abs=1e-4)
