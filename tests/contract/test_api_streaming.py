"""`stream: true` on the embeddings route: the same items as the whole answer, one after the other."""

import json
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from tests.support.web import CORPUS

LONG = "word " * 2000


def stream(client: FlaskClient, accept: str = "*/*", **body: Any) -> tuple[Any, list[Any]]:
    answer = client.post("/v1/embeddings", json={"model": "fake", "stream": True, **body}, headers={"Accept": accept})
    if answer.mimetype == "text/event-stream":
        return answer, [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]
    return answer, [json.loads(line) for line in answer.data.splitlines()]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
@pytest.mark.parametrize("count", [1, 33, 700])
def test_a_streamed_call_gives_the_items_of_the_whole_answer_in_order(
    client: FlaskClient, vectors: Any, count: int, accept: str
) -> None:
    answer, (*items, last) = stream(client, accept, input=CORPUS[:count])
    assert (answer.status_code, answer.mimetype) == (200, accept)
    assert [item["index"] for item in items] == list(range(count))
    np.testing.assert_allclose([item["embedding"] for item in items], vectors[:count], atol=1e-6)
    assert last["usage"]["prompt_tokens"] == sum(item["tokens"] for item in items)
    assert answer.headers["x-model-fingerprint"]


def test_what_is_refused_before_the_first_item_has_its_status(client: FlaskClient) -> None:
    answer, body = stream(client, input=["a", LONG], truncate="none")
    assert answer.status_code == 400, body
    assert body[0]["error"]["code"] == "context_length_exceeded"


def test_a_failure_behind_the_first_item_ends_the_stream_with_an_error(client: FlaskClient) -> None:
    texts = [*CORPUS[:40], LONG]
    answer, (*items, last) = stream(client, input=texts, truncate="none")
    assert answer.status_code == 200
    assert len(items) == 32
    assert last["error"]["code"] == "context_length_exceeded"


def test_a_failed_item_can_stand_among_its_neighbours(client: FlaskClient) -> None:
    _, (*items, last) = stream(client, input=[*CORPUS[:40], LONG, "b"], truncate="none", on_error="item")
    assert [index for index, item in enumerate(items) if "error" in item] == [40]
    assert "usage" in last


@pytest.mark.parametrize(("path", "extra"), [("/v1/embeddings", {}), ("/v1/jobs", {"type": "embeddings"})])
def test_a_queued_call_does_not_ignore_stream(client: FlaskClient, path: str, extra: dict[str, Any]) -> None:
    body = {"model": "fake", "input": ["a"], "stream": True, **extra}
    answer = client.post(path, json=body, headers={"Prefer": "respond-async"})
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, "stream")
