"""Text-embeddings-inference's routes, as its OpenAPI text and its clients spell them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, settings_of, write_keys


def ask(client: FlaskClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.json
    return answer.json


def refusal(client: FlaskClient, path: str, **body: Any) -> tuple[int, str | None]:
    answer = client.post(path, json=body)
    return answer.status_code, (answer.json or {})["error"]["param"]


def embeddings(client: FlaskClient, texts: list[str], **fields: Any) -> Any:
    data = ask(client, "/v1/embeddings", model="fake", input=texts, **fields)["data"]
    return [entry["embedding"] for entry in data]


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_vectors_come_as_a_bare_list_from_the_default_model(client: FlaskClient, path: str) -> None:
    assert ask(client, path, inputs=["alpha", "beta"]) == embeddings(client, ["alpha", "beta"])
    assert ask(client, path, inputs="alpha") == embeddings(client, ["alpha"])


def test_dimensions_and_prompts_are_obeyed(client: FlaskClient) -> None:
    assert ask(client, "/embed", inputs="alpha", dimensions=8) == embeddings(client, ["alpha"], dimensions=8)
    asked = ask(client, "/embed", inputs="alpha", prompt_name="query")
    assert asked == embeddings(client, ["alpha"], input_type="query")
    assert refusal(client, "/embed", inputs="alpha", prompt_name="poem") == (400, "prompt_name")


def test_a_text_that_is_too_long_is_cut_where_asked_or_refused(client: FlaskClient) -> None:
    text = "first " + "word " * 2000 + "last"
    ends = [ask(client, "/embed", inputs=text, truncate=True, truncation_direction=d) for d in ("right", "left")]
    assert ends[0] == embeddings(client, [text])
    assert ends[1] == embeddings(client, [text], truncate="start")
    assert ends[0] != ends[1]
    assert refusal(client, "/embed", inputs=text, truncate=False)[0] == 400


def test_unit_vectors_are_not_given_without_their_length(client: FlaskClient) -> None:
    np.testing.assert_allclose(np.linalg.norm(ask(client, "/embed", inputs="a", normalize=True)), 1, atol=1e-5)
    assert refusal(client, "/embed", inputs="alpha", normalize=False) == (400, "normalize")


def test_a_ranking_of_texts_has_teis_shape_and_one_of_documents_ours(client: FlaskClient) -> None:
    texts = ["beta", "alpha", "gamma"]
    ranks = ask(client, "/rerank", query="alpha", texts=texts, return_text=True, raw_scores=False, truncate=True)
    ours = ask(client, "/rerank", model="fake", query="alpha", documents=texts)["results"]
    assert [rank["index"] for rank in ranks] == [result["index"] for result in ours]
    assert ranks[0]["text"] == "alpha"
    np.testing.assert_allclose([r["score"] for r in ranks], [r["relevance_score"] for r in ours], atol=1e-6)
    assert "text" not in ask(client, "/rerank", query="alpha", texts=texts)[0]


def test_what_a_ranking_cannot_obey_is_refused(client: FlaskClient) -> None:
    assert refusal(client, "/rerank", query="a", texts=["a"], raw_scores=True) == (400, "raw_scores")
    assert refusal(client, "/rerank", query="a", texts=[]) == (400, "texts")
    assert refusal(client, "/rerank", query="a", texts=["word " * 2000], truncate=False)[0] == 400


def test_sparse_vectors_need_a_model_that_gives_them(client: FlaskClient) -> None:
    assert refusal(client, "/embed_sparse", inputs="alpha") == (404, "model")
    assert refusal(client, "/embed_sparse", inputs="alpha", model="fake")[0] == 400


def test_info_describes_the_default_model(client: FlaskClient) -> None:
    info = client.get("/info").json or {}
    assert info["model_id"] == "fake"
    assert info["max_input_length"] == 512
    assert "embedding" in info["model_type"]


@pytest.fixture
def guarded(server: EmbeddedServer, tmp_path: Path) -> Iterator[FlaskClient]:
    keys = write_keys(tmp_path / "keys.toml", {"ada": "", "other": 'models = ["bge-m3"]'})
    with opened_app(settings_of(server, tmp_path, keys_file=keys)) as app:
        yield app.test_client()


def test_work_that_is_sent_to_the_open_page_needs_a_key(guarded: FlaskClient) -> None:
    assert guarded.get("/").status_code == 200
    assert guarded.post("/", json={"inputs": "a"}).status_code == 401
    other = guarded.post("/", json={"inputs": "a"}, headers={"Authorization": "Bearer other"})
    assert (other.status_code, (other.json or {})["error"]["param"]) == (404, "model")


def test_a_key_may_come_as_azures_clients_send_it(guarded: FlaskClient) -> None:
    assert guarded.get("/v1/models", headers={"api-key": "ada"}).status_code == 200
    assert guarded.get("/v1/models", headers={"api-key": "wrong"}).status_code == 401
