"""The synchronous routes, over the real interactive lane and engine with the fake model."""

import base64
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient


def embed(client: FlaskClient, text: Any, **fields: Any) -> Any:
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": text, **fields})
    assert answer.status_code == 200, answer.json
    return answer.json


def vectors(body: Any) -> np.ndarray[Any, Any]:
    return np.array([entry["embedding"] for entry in body["data"]], np.float32)


def test_vectors_come_back_in_order_with_usage_and_the_name_that_was_asked(client: FlaskClient) -> None:
    body = embed(client, ["alpha", "beta", "alpha", ""])
    assert body["object"] == "list"
    assert body["model"] == "fake"
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2, 3]
    got = vectors(body)
    assert got.shape == (4, 64)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(got[0], got[2])
    assert not np.array_equal(got[0], got[1])
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


def test_base64_is_little_endian_float32_of_the_same_vector(client: FlaskClient) -> None:
    plain, packed = embed(client, "alpha"), embed(client, "alpha", encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, vectors(plain)[0])


def test_dimensions_cut_and_normalize_again_and_the_native_size_is_taken(client: FlaskClient) -> None:
    whole, cut = vectors(embed(client, "alpha", dimensions=64))[0], vectors(embed(client, "alpha", dimensions=8))[0]
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-5)


def test_token_ids_give_the_vector_of_their_text(client: FlaskClient) -> None:
    text = vectors(embed(client, "hello world"))
    np.testing.assert_array_equal(vectors(embed(client, [15339, 1917])), text)
    np.testing.assert_array_equal(vectors(embed(client, [[15339, 1917], [15339]]))[0], text[0])


def test_many_inputs_are_answered_in_the_same_call(client: FlaskClient) -> None:
    texts = [f"text {i}" for i in range(2048)]
    got = vectors(embed(client, texts))
    assert got.shape == (2048, 64)
    np.testing.assert_array_equal(got[1000], vectors(embed(client, texts[1000]))[0])


def test_more_than_2048_inputs_are_refused_with_both_ways_to_queue_them(client: FlaskClient) -> None:
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": ["a"] * 2049})
    assert answer.status_code == 400
    error = (answer.json or {})["error"]
    assert error["param"] == "input"
    assert "/v1/jobs" in error["message"]
    assert "Prefer: respond-async" in error["message"]


def test_with_respond_async_any_number_is_queued(client: FlaskClient) -> None:
    headers = {"Prefer": "respond-async"}
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": ["a"] * 3000}, headers=headers)
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["Location"] == f"/v1/jobs/{(answer.json or {})['id']}"
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_text_that_is_too_long_is_cut_or_refused_with_openais_sentence(client: FlaskClient) -> None:
    text = "word " * 2000
    embed(client, text)
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": text, "truncate": "none"})
    assert answer.status_code == 400
    error = (answer.json or {})["error"]
    assert error["code"] == "context_length_exceeded"
    words = "This model's maximum context length is 512 tokens, however you requested 2002 tokens"
    assert error["message"] == words
    assert error["param"] == "input"


def test_a_query_instruction_changes_the_vector_and_an_instruction_of_ones_own_too(client: FlaskClient) -> None:
    plain = vectors(embed(client, "alpha"))
    assert not np.array_equal(plain, vectors(embed(client, "alpha", instruction="find")))
    np.testing.assert_array_equal(plain, vectors(embed(client, "alpha", input_type="document")))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank_has_one_shape_on_three_paths(client: FlaskClient, path: str) -> None:
    documents = ["beta", {"text": "alpha", "source": "s"}, "gamma", "alpha"]
    body = {"model": "fake", "query": "alpha", "documents": documents, "top_n": None, "return_documents": True}
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.json
    got = answer.json or {}
    assert got["object"] == "list"
    assert got["id"].startswith("rerank-")
    assert [result["index"] for result in got["results"][:2]] == [1, 3]  # a tie, by index
    assert got["results"][0]["document"] == {"text": "alpha", "source": "s"}
    assert got["results"][1]["document"] == {"text": "alpha"}
    scores = [result["relevance_score"] for result in got["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert got["usage"]["total_tokens"] == got["meta"]["tokens"]["input_tokens"] > 0
    assert got["meta"]["billed_units"]["search_units"] == 1
    assert got["meta"]["api_version"] == {"version": "2"}


def test_top_n_cuts_and_may_be_larger_than_the_list(client: FlaskClient) -> None:
    body = {"model": "fake", "query": "q", "documents": ["a", "b", "c"]}
    assert len((client.post("/v1/rerank", json={**body, "top_n": 2}).json or {})["results"]) == 2
    results = (client.post("/v1/rerank", json={**body, "top_n": 9}).json or {})["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2]
    assert all("document" not in result for result in results)


def test_models_are_listed_and_found_by_name_alias_and_encoded_slash(client: FlaskClient) -> None:
    listed = client.get("/v1/models").json or {}
    assert [model["id"] for model in listed["data"]] == ["fake"]
    assert listed["data"][0]["ready"] is True
    for path in ("/v1/models/bge-m3", "/v1/models/BAAI/bge-m3", "/v1/models/BAAI%2Fbge-m3"):
        model = client.get(path).json or {}
        assert (model["id"], model["object"], model["owned_by"], model["ready"]) == ("bge-m3", "model", "BAAI", False)
        assert isinstance(model["created"], int)
    assert client.get("/v1/models/none/such").status_code == 404


def test_the_probes_say_ready_when_a_worker_has_announced_the_models(client: FlaskClient) -> None:
    assert client.get("/livez").json == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, (ready.json or {})["status"]) == (200, "ready")
    health = client.get("/health").json or {}
    assert health["models"]["fake"] == {"ready": True, "workers": 1}
    assert health["workers"][0]["device"] == "cpu"
    calls = {"target_ms": 50.0, "p99_ms": 12.0, "expected_ms": 80.0, "target_in_reach": False}
    assert health["workers"][0]["calls"] == calls
