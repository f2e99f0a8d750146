"""The results of a job in every form, whole and in part."""

import base64
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask.testing import FlaskClient
from pyarrow import feather

from app.vector_formats import quantize
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import CORPUS, NDJSON, settings_of, wait_for_end


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(server, tmp_path_factory.mktemp("data"), chunk_items=100)


def test_pages_of_json_hold_every_item_once_and_in_order(client: FlaskClient, ended: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []
    after = -1
    while True:
        page = client.get(f"/v1/jobs/{ended['id']}/results?limit=150&after={after}").json or {}
        seen += page["data"]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert [item["index"] for item in seen] == list(range(700))
    assert [item["id"] for item in seen] == [f"p{i}" for i in range(700)]


def test_ndjson_npy_arrow_and_parquet_hold_the_same_vectors(
    client: FlaskClient, ended: dict[str, Any], vectors: Any
) -> None:
    address = f"/v1/jobs/{ended['id']}/results"
    lines = [json.loads(line) for line in client.get(f"{address}?format=ndjson").data.splitlines()]
    np.testing.assert_allclose(np.array([line["embedding"] for line in lines], np.float32), vectors, atol=1e-6)
    array = np.load(io.BytesIO(client.get(f"{address}?format=npy").data))
    assert (array.shape, array.dtype) == ((700, 64), np.float32)
    np.testing.assert_allclose(array, vectors, atol=1e-6)
    arrow = pa.ipc.open_stream(client.get(address, headers={"Accept": "application/vnd.apache.arrow.stream"}).data)
    parquet = pq.read_table(io.BytesIO(client.get(f"{address}?format=parquet").data))
    file = client.get(f"{address}?format=arrow")
    assert "results.arrow" in file.headers["Content-Disposition"]
    for table in (arrow.read_all(), feather.read_table(io.BytesIO(file.data)), parquet):
        assert table.column("id").to_pylist() == [f"p{i}" for i in range(700)]
        assert table.column("index").to_pylist() == list(range(700))
        got = np.array(table.column("embedding").to_pylist(), np.float32)
        np.testing.assert_array_equal(got, array)
        assert table.schema.metadata[b"model"] == b"fake"


def test_results_as_base64_hold_the_same_vectors(client: FlaskClient, ended: dict[str, Any], vectors: Any) -> None:
    page = client.get(f"/v1/jobs/{ended['id']}/results?encoding_format=base64&limit=1").json or {}
    got = np.frombuffer(base64.b64decode(page["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(got, vectors[0], atol=1e-6)


@pytest.mark.parametrize("span", [(0, 99), (0, 0), (100, 130), (128, 40_000), (25_000, None), (None, 777), (0, 10**9)])
def test_any_range_of_the_npy_file_is_that_part_of_the_whole(
    client: FlaskClient, ended: dict[str, Any], span: tuple[int | None, int | None]
) -> None:
    address = f"/v1/jobs/{ended['id']}/results?format=npy"
    whole = client.get(address).data
    first, last = span
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    part = client.get(address, headers={"Range": header})
    assert part.status_code == 206
    expected = whole[-(last or 0) :] if first is None else whole[first : None if last is None else last + 1]
    assert part.data == expected
    assert part.headers["Content-Range"].endswith(f"/{len(whole)}")
    assert int(part.headers["Content-Length"]) == len(expected)


def test_a_range_of_another_state_is_answered_with_the_whole(client: FlaskClient, ended: dict[str, Any]) -> None:
    address = f"/v1/jobs/{ended['id']}/results?format=npy"
    tag = client.get(address).headers["ETag"]
    for sent, status in ((tag, 206), ('"other"', 200)):
        assert client.get(address, headers={"Range": "bytes=0-9", "If-Range": sent}).status_code == status


def test_a_range_behind_the_end_is_a_416(client: FlaskClient, ended: dict[str, Any]) -> None:
    answer = client.get(f"/v1/jobs/{ended['id']}/results?format=npy", headers={"Range": "bytes=99999999-"})
    assert (answer.status_code, (answer.json or {})["error"]["code"]) == (416, "range_not_satisfiable")


def test_half_precision_is_kept_as_half_precision(client: FlaskClient, vectors: Any) -> None:
    body = {"type": "embeddings", "model": "fake", "input": CORPUS, "dtype": "float16"}
    job = wait_for_end(client, (client.post("/v1/jobs", json=body).json or {})["id"])
    address = f"/v1/jobs/{job['id']}/results"
    array = np.load(io.BytesIO(client.get(f"{address}?format=npy").data))
    assert array.dtype == np.float16
    np.testing.assert_allclose(array.astype(np.float32), vectors, atol=1e-3)
    table = pq.read_table(io.BytesIO(client.get(f"{address}?format=parquet").data))
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 64)
    assert len(client.get(f"{address}?format=ndjson").data.splitlines()) == 700


@pytest.mark.parametrize("prefer", ["", "respond-async"])
def test_an_item_that_fails_has_its_error_and_its_neighbours_their_vectors(client: FlaskClient, prefer: str) -> None:
    body = {"type": "embeddings", "model": "fake", "truncate": "none", "input": ["a", "long " * 900, "c"]}
    answer = client.post("/v1/jobs", json=body, headers={"Prefer": prefer})
    job = wait_for_end(client, (answer.json or {})["id"])
    assert job["status"] == "succeeded"
    assert job["counts"] == {
        "total": 3,
        "completed": 2,
        "failed": 1,
        "truncated": job["counts"]["truncated"],
        "cached": 0,
    }
    address = f"/v1/jobs/{job['id']}/results"
    items = (client.get(address).json or {})["data"]
    assert items[1]["error"]["code"] == "context_length_exceeded"
    assert "embedding" not in items[1]
    assert "error" not in items[0]
    array = np.load(io.BytesIO(client.get(f"{address}?format=npy").data))
    assert np.isnan(array[1]).all()
    assert np.isfinite(array[[0, 2]]).all()
    for table in (
        pq.read_table(io.BytesIO(client.get(f"{address}?format=parquet").data)),
        pa.ipc.open_file(client.get(f"{address}?format=arrow").data).read_all(),
    ):
        assert table.column("error").to_pylist() == [None, "context_length_exceeded", None]
        assert table.column("embedding").to_pylist()[1] is None
        np.testing.assert_array_equal(np.array(table.column("embedding")[2].as_py(), np.float32), array[2])


@pytest.mark.parametrize("prefer", ["", "respond-async"])
def test_a_rerank_job_places_every_score(client: FlaskClient, prefer: str) -> None:
    queries = [{"query": "p", "documents": ["p", "x", "y"]}, {"query": "q", "documents": [{"text": "q", "id": "Q"}]}]
    body = {"type": "rerank", "model": "fake", "queries": queries}
    answer = client.post("/v1/jobs", json=body, headers={"Prefer": prefer})
    job = wait_for_end(client, (answer.json or {})["id"])
    address = f"/v1/jobs/{job['id']}/results"
    items = (client.get(address).json or {})["data"]
    assert [(item["query"], item["document"]) for item in items] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert items[0]["relevance_score"] == items[3]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert [item["id"] for item in items] == [None, None, None, "Q"]
    array = np.load(io.BytesIO(client.get(f"{address}?format=npy").data))
    assert array.shape == (4,)
    table = pq.read_table(io.BytesIO(client.get(f"{address}?format=parquet").data))
    np.testing.assert_allclose(table.column("relevance_score").to_pylist(), array)


def test_a_rerank_upload_takes_the_query_from_the_address_or_the_line(client: FlaskClient) -> None:
    lines = b'"p"\n{"text": "q", "query": "q"}\n'
    answer = client.post("/v1/jobs?type=rerank&model=fake&query=p", data=lines, content_type=NDJSON)
    scores = [item["relevance_score"] for item in (answer.json or {})["results"]]
    assert scores == pytest.approx([1, 1], abs=1e-5)


def _paused(client: FlaskClient, body: dict[str, Any]) -> str:
    job_id = str((client.post("/v1/jobs", json=body, headers={"Prefer": "respond-async"}).json or {})["id"])
    assert (client.post(f"/v1/jobs/{job_id}/pause").json or {})["status"] == "paused"
    return f"/v1/jobs/{job_id}"


def test_results_can_be_followed_in_input_order_while_the_job_runs(client: FlaskClient, vectors: Any) -> None:
    address = _paused(client, {"type": "embeddings", "model": "fake", "input": CORPUS})
    assert client.get(f"{address}/results?format=ndjson").status_code == 409
    followed = client.get(f"{address}/results?format=ndjson&follow=true&after=49")
    table = client.get(f"{address}/results?format=arrows&follow=true&after=249")
    client.post(f"{address}/resume")
    *items, last = [json.loads(line) for line in followed.data.splitlines() if line]
    assert last == {"status": "succeeded", "after": 699, "complete": True}
    assert [item["index"] for item in items] == list(range(50, 700))
    np.testing.assert_allclose([item["embedding"] for item in items], vectors[50:], atol=1e-6)
    rows = pa.ipc.open_stream(table.data).read_all()
    assert rows.column("index").to_pylist() == list(range(250, 700))
    np.testing.assert_allclose(np.array(rows.column("embedding").to_pylist()), vectors[250:], atol=1e-6)


def test_following_a_cancelled_job_ends_with_its_state(client: FlaskClient) -> None:
    address = _paused(client, {"type": "embeddings", "model": "fake", "input": CORPUS})
    followed = client.get(f"{address}/results?format=ndjson&follow=true")
    client.delete(address)
    *items, last = [json.loads(line) for line in followed.data.splitlines() if line]
    done = (client.get(address).json or {})["counts"]["completed"]
    assert len(items) == done
    assert (last["status"], last["complete"]) == ("cancelled", True)


def test_failed_items_are_given_alone(client: FlaskClient) -> None:
    texts = ["short" if i % 90 else "long " * 900 for i in range(300)]
    body = {"type": "embeddings", "model": "fake", "truncate": "none", "input": texts}
    job = wait_for_end(client, (client.post("/v1/jobs", json=body).json or {})["id"])
    address = f"/v1/jobs/{job['id']}/results?status=failed"
    page = client.get(f"{address}&limit=3").json or {}
    rest = client.get(f"{address}&after={page['last_id']}").json or {}
    assert [item["index"] for item in page["data"] + rest["data"]] == [0, 90, 180, 270]
    assert (page["has_more"], rest["has_more"]) == (True, False)
    lines = [json.loads(line) for line in client.get(f"{address}&format=ndjson").data.splitlines()]
    assert {line["error"]["code"] for line in lines} == {"context_length_exceeded"}
    assert len(lines) == 4


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_a_jobs_vectors_come_in_other_precisions_in_every_form(
    client: FlaskClient, ended: dict[str, Any], vectors: Any, precision: Any
) -> None:
    expected = quantize(vectors, precision)
    address = f"/v1/jobs/{ended['id']}/results?output_dtype={precision}"
    array = np.load(io.BytesIO(client.get(f"{address}&format=npy").data))
    assert array.dtype == expected.dtype
    # A vector by a call and by a job may differ in its last bits, so a number may be rounded the other way.
    assert (np.abs(array.astype(np.float32) - expected) > 1).mean() < 0.001
    table = pq.read_table(io.BytesIO(client.get(f"{address}&format=parquet").data))
    assert table.schema.field("embedding").type == pa.list_(pa.from_numpy_dtype(expected.dtype), expected.shape[1])
    np.testing.assert_array_equal(np.array(table.column("embedding").to_pylist(), array.dtype), array)
    line = json.loads(client.get(f"{address}&format=ndjson&encoding_format=base64").data.splitlines()[0])
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(line["embedding"]), array.dtype), array[0])


@pytest.mark.parametrize(
    ("query", "param"),
    [("formt=npy", "formt"), ("format=npy&follow=true", "follow"), ("status=failed&format=parquet", "status")],
)
def test_a_parameter_that_would_change_nothing_is_refused(
    client: FlaskClient, ended: dict[str, Any], query: str, param: str
) -> None:
    answer = client.get(f"/v1/jobs/{ended['id']}/results?{query}")
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, param)
