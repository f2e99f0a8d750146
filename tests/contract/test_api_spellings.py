"""Voyage's, Jina's and NVIDIA's words on our own routes: the same numbers under other names."""

import base64
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.vector_formats import quantize
from tests.support.batch_requests import body_of, embed, read, run
from tests.support.web import running_scheduler

LONG = "word " * 2000


def ask(client: FlaskClient, path: str = "/v1/embeddings", **body: Any) -> Any:
    answer = client.post(path, json={"model": "fake", **body})
    assert answer.status_code == 200, answer.json
    return answer.json


def refusal(client: FlaskClient, path: str = "/v1/embeddings", **body: Any) -> tuple[int, str | None]:
    answer = client.post(path, json={"model": "fake", **body})
    return answer.status_code, (answer.json or {})["error"]["param"]


def vectors(answer: Any) -> Any:
    return np.array([entry["embedding"] for entry in answer["data"]])


def test_voyages_dimension_is_obeyed_and_not_ignored(client: FlaskClient) -> None:
    short = vectors(ask(client, input=["alpha"], output_dimension=8))
    np.testing.assert_array_equal(short, vectors(ask(client, input=["alpha"], dimensions=8)))
    assert refusal(client, input="a", output_dimension=65) == (400, "dimensions")


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary", "float16"])
def test_a_precision_is_the_last_step_in_numbers_and_in_base64(client: FlaskClient, precision: Any) -> None:
    whole = vectors(ask(client, input=["alpha", "beta"], dimensions=32)).astype(np.float32)
    expected = quantize(whole, precision)
    got = ask(client, input=["alpha", "beta"], dimensions=32, output_dtype=precision)
    np.testing.assert_array_equal(vectors(got).astype(expected.dtype), expected)
    packed = ask(client, input=["alpha", "beta"], dimensions=32, output_dtype=precision, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(entry["embedding"]), expected.dtype) for entry in packed["data"]]
    np.testing.assert_array_equal(decoded, expected)


def test_nims_words_are_read_in_capitals(client: FlaskClient) -> None:
    query = vectors(ask(client, input=["alpha"], input_type="query", truncate="END"))
    np.testing.assert_array_equal(query, vectors(ask(client, input=["alpha"], input_type="query")))
    assert refusal(client, input=LONG, input_type="passage", truncate="NONE")[0] == 400


def test_voyages_ranking_has_data_and_others_have_not(client: FlaskClient) -> None:
    documents = ["beta", "alpha", "gamma"]
    theirs = ask(client, "/v1/rerank", query="alpha", documents=documents, top_k=2, truncation=True)
    ours = ask(client, "/v1/rerank", query="alpha", documents=documents, top_n=2)
    assert theirs["object"] == "list"
    assert theirs["data"] == theirs["results"] == ours["results"]
    assert "data" not in ours


def test_voyages_own_address_needs_no_word_of_voyages(client: FlaskClient) -> None:
    body = {"query": "alpha", "documents": ["beta", "alpha"]}
    theirs = ask(client, "/voyage/v1/rerank", **body)
    assert theirs["data"] == theirs["results"] == ask(client, "/v1/rerank", **body)["results"]
    np.testing.assert_array_equal(
        vectors(ask(client, "/voyage/v1/embeddings", input=["a"])), vectors(ask(client, input=["a"]))
    )


def test_a_document_that_is_too_long_is_refused_where_asked(client: FlaskClient) -> None:
    ask(client, "/v1/rerank", query="a", documents=[LONG])
    assert refusal(client, "/v1/rerank", query="a", documents=[LONG], truncation=False)[0] == 400


def test_a_limit_per_document_that_cuts_nothing_changes_nothing(client: FlaskClient) -> None:
    long = {"query": "a", "documents": ["alpha", LONG]}
    plain = ask(client, "/v2/rerank", **long)["results"]
    for limit in (512, 4096):
        assert ask(client, "/v2/rerank", **long, max_tokens_per_doc=limit)["results"] == plain
    ask(client, "/v2/rerank", query="a", documents=["alpha"], max_tokens_per_doc=5)
    ask(client, "/v1/rerank", query="a", documents=["alpha"], max_chunks_per_doc=10)
    ask(client, "/v1/rerank", query="a", documents=[LONG], max_chunks_per_doc=1)


def test_lines_of_a_batch_understand_the_same_words(app_here: Flask, client: FlaskClient) -> None:
    fields = {"output_dimension": 8, "output_dtype": "int8"}
    with running_scheduler(app_here):
        batch = run(client, [embed("good", "alpha", **fields), embed("bad", "alpha", task="poetry")])
    good, bad = read(client, batch["output_file_id"])["good"], read(client, batch["error_file_id"])["bad"]
    assert body_of(good)["data"] == ask(client, input="alpha", **fields)["data"]
    assert bad["response"]["body"]["error"]["param"] == "task"
