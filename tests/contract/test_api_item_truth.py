"""What a call says of each of its items: tokens, whether it was cut, and on request its error beside its neighbours."""

from typing import Any

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
