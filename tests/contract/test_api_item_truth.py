"""What a call says of each of its items: tokens, whether it was cut, and on request its error beside its neighbours."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.batch_requests import body_of, embed, read, run
from tests.support.web import running_scheduler

LONG = "word " * 2000


def ask(client: FlaskClient, path: str = "/v1/embeddings", **body: Any) -> Any:
    answer = client.post(path, json={"model": "fake", **body})
    assert answer.status_code == 200, answer.json
    return answer


def test_each_item_says_how_many_tokens_were_read_and_whether_it_was_cut(client: FlaskClient) -> None:
    answer = ask(client, input=["alpha beta", LONG])
    data = answer.json["data"]
    assert [entry["truncated"] for entry in data] == [False, True]
    assert data[1]["tokens"] == 512
    assert sum(entry["tokens"] for entry in data) == answer.json["usage"]["prompt_tokens"]
    assert answer.headers["x-truncated-items"] == "1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": "a", "documents": ["alpha", LONG, LONG]}),
        ("/embed", {"inputs": ["alpha", LONG, LONG]}),
        ("/v2/embed", {"texts": ["alpha", LONG, LONG]}),
        ("/v1/ranking", {"query": {"text": "a"}, "passages": [{"text": LONG}, {"text": LONG}]}),
    ],
)
def test_the_header_counts_what_was_cut_on_every_path(client: FlaskClient, path: str, body: dict[str, Any]) -> None:
    assert ask(client, path, **body).headers["x-truncated-items"] == "2"
    assert ask(client, input="short").headers["x-truncated-items"] == "0"


def test_one_bad_text_fails_alone_where_that_is_asked_for(client: FlaskClient) -> None:
    texts = ["alpha", LONG, "beta"]
    good = ask(client, input=["alpha", "beta"]).json["data"]
    data = ask(client, input=texts, truncate="none", on_error="item").json["data"]
    assert [entry["index"] for entry in data] == [0, 1, 2]
    assert [data[0]["embedding"], data[2]["embedding"]] == [entry["embedding"] for entry in good]
    assert data[1]["error"]["code"] == "context_length_exceeded"
    assert "embedding" not in data[1]
    assert data[1]["truncated"] is False  # nothing was cut off what was refused
    failed = client.post("/v1/embeddings", json={"model": "fake", "input": texts, "truncate": "none"})
    assert failed.status_code == 400


def test_a_ranking_has_no_place_for_a_failed_document(client: FlaskClient) -> None:
    body = {"model": "fake", "query": "a", "documents": ["a"], "on_error": "item"}
    answer = client.post("/v1/rerank", json=body)
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, "on_error")


def test_a_line_of_a_batch_tells_the_same(app_here: Flask, client: FlaskClient) -> None:
    fields = {"truncate": "none", "on_error": "item"}
    with running_scheduler(app_here):
        batch = run(client, [embed("a", ["alpha", LONG], **fields), embed("b", ["alpha", LONG], truncate="none")])
    line = read(client, batch["output_file_id"])["a"]
    assert body_of(line)["data"] == ask(client, input=["alpha", LONG], **fields).json["data"]
    assert read(client, batch["error_file_id"])["b"]["response"]["status_code"] == 400


@pytest.mark.parametrize(
    "form", ["application/x-npy", "application/vnd.apache.arrow.stream", "application/octet-stream"]
)
@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_call_gives_its_vectors_as_bytes(client: FlaskClient, form: str, precision: Any) -> None:
    texts = ["alpha", LONG, "beta"]
    whole = ask(client, input=texts, output_dtype=precision).json
    expected = np.array([entry["embedding"] for entry in whole["data"]])
    body = {"model": "fake", "input": texts, "output_dtype": precision}
    answer = client.post("/v1/embeddings", json=body, headers={"Accept": form})
    assert (answer.status_code, answer.mimetype) == (200, form)
    dtype = np.dtype(answer.headers["x-embedding-dtype"])
    assert answer.headers["x-embedding-shape"] == ",".join(map(str, expected.shape))
    if form == "application/octet-stream":
        vectors = np.frombuffer(answer.data, dtype).reshape(expected.shape)
    elif form == "application/x-npy":
        vectors = np.load(io.BytesIO(answer.data))
    else:
        table = pa.ipc.open_stream(answer.data).read_all()
        assert table.column("truncated").to_pylist() == [False, True, False]
        vectors = np.array(table.column("embedding").to_pylist(), dtype)
    assert vectors.dtype == dtype
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert answer.headers["x-prompt-tokens"] == str(whole["usage"]["prompt_tokens"])
    assert answer.headers["x-truncated-items"] == "1"


def test_a_failed_item_among_bytes_is_not_a_number(client: FlaskClient) -> None:
    body = {"model": "fake", "input": ["a", LONG], "truncate": "none", "on_error": "item"}
    answer = client.post("/v1/embeddings", json=body, headers={"Accept": "application/x-npy"})
    vectors = np.load(io.BytesIO(answer.data))
    assert np.isfinite(vectors[0]).all()
    assert np.isnan(vectors[1]).all()


def test_a_batch_says_its_model_and_the_tokens_that_were_read(app_here: Flask, client: FlaskClient) -> None:
    with running_scheduler(app_here):
        batch = run(client, [embed("one", ["alpha beta"]), embed("two", ["gamma"])])
    assert batch["model"] == "fake"
    tokens = sum(body_of(line)["usage"]["prompt_tokens"] for line in read(client, batch["output_file_id"]).values())
    assert (batch["usage"]["input_tokens"], batch["usage"]["total_tokens"]) == (tokens, tokens)
