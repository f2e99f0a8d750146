"""The smaller adapters (Ollama, Azure OpenAI, Infinity, NVIDIA, vLLM), as their references and clients spell them."""

from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

TEXTS = ["beta", "alpha", "gamma"]
LONG = "word " * 2000


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


@pytest.fixture(scope="module")
def ranking(client: FlaskClient) -> Any:
    return ask(client, "/v1/rerank", model="fake", query="alpha", documents=TEXTS)["results"]


def test_ollama_embeds_one_text_or_several(client: FlaskClient) -> None:
    answer = ask(client, "/api/embed", model="fake:latest", input=TEXTS, dimensions=8)
    assert answer["embeddings"] == embeddings(client, TEXTS, dimensions=8)
    assert answer["model"] == "fake:latest"
    assert answer["prompt_eval_count"] > 0
    assert answer["total_duration"] > 0
    assert ask(client, "/api/embed", model="fake", input="alpha")["embeddings"] == embeddings(client, ["alpha"])
    assert ask(client, "/api/embeddings", model="fake", prompt="alpha")["embedding"] == embeddings(client, ["alpha"])[0]


def test_ollama_cuts_long_texts_unless_it_is_not_to(client: FlaskClient) -> None:
    assert ask(client, "/api/embed", model="fake", input=LONG)["embeddings"] == embeddings(client, [LONG])
    assert refusal(client, "/api/embed", model="fake", input=LONG, truncate=False)[0] == 400


def test_ollamas_options_that_would_change_a_vector_are_refused(client: FlaskClient) -> None:
    ask(client, "/api/embed", model="fake", input="a", options={"temperature": 0.5, "num_ctx": 512}, keep_alive="5m")
    small = refusal(client, "/api/embed", model="fake", input="a", options={"num_ctx": 16})
    assert small == (400, "options.num_ctx")
    assert refusal(client, "/api/embed", model="fake", input=[]) == (400, "input")


def test_ollama_lists_what_is_served(client: FlaskClient) -> None:
    models = (client.get("/api/tags").json or {})["models"]
    assert [model["model"] for model in models] == ["fake"]
    assert {"name", "modified_at", "size", "digest", "details"} <= set(models[0])


def test_azures_deployment_is_the_model(client: FlaskClient) -> None:
    path = "/openai/deployments/fake/embeddings?api-version=2024-10-21"
    answer = ask(client, path, input=TEXTS, model="another", encoding_format="float")
    assert answer["model"] == "fake"
    assert [entry["embedding"] for entry in answer["data"]] == embeddings(client, TEXTS)
    assert refusal(client, "/openai/deployments/none/embeddings", input="a") == (404, "model")


@pytest.mark.parametrize("path", ["/embeddings", "/infinity/embeddings"])
def test_infinity_needs_no_model_name(client: FlaskClient, path: str) -> None:
    for named in ({}, {"model": "default/not-specified"}, {"model": "fake"}):
        answer = ask(client, path, input=TEXTS, modality="text", **named)
        assert answer["model"] == "fake"
        assert [entry["embedding"] for entry in answer["data"]] == embeddings(client, TEXTS)
    assert refusal(client, path, input="a", modality="image") == (400, "modality")


def test_infinitys_ranking_has_strings_and_its_own_word(client: FlaskClient, ranking: Any) -> None:
    answer = ask(client, "/infinity/rerank", query="alpha", documents=TEXTS, return_documents=True, raw_scores=False)
    assert answer["object"] == "rerank"
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [
        (r["index"], r["relevance_score"]) for r in ranking
    ]
    assert [r["document"] for r in answer["results"]] == [TEXTS[r["index"]] for r in ranking]
    assert refusal(client, "/infinity/rerank", query="a", documents=["a"], raw_scores=True) == (400, "raw_scores")


def test_nvidias_logits_are_those_of_the_scores(client: FlaskClient, ranking: Any) -> None:
    passages = [{"text": text} for text in TEXTS]
    answer = ask(client, "/v1/ranking", model="fake", query={"text": "alpha"}, passages=passages, truncate="END")
    assert [rank["index"] for rank in answer["rankings"]] == [result["index"] for result in ranking]
    scores = [1 / (1 + np.exp(-rank["logit"])) for rank in answer["rankings"]]
    np.testing.assert_allclose(scores, [result["relevance_score"] for result in ranking], atol=1e-6)
    assert all(np.isfinite(rank["logit"]) for rank in answer["rankings"])


def test_nvidias_hosted_address_names_the_model_and_takes_the_best(client: FlaskClient, ranking: Any) -> None:
    passages = [{"text": text} for text in TEXTS]
    answer = ask(client, "/v1/retrieval/fake/reranking", query={"text": "alpha"}, passages=passages, top_k=2)
    assert [rank["index"] for rank in answer["rankings"]] == [result["index"] for result in ranking[:2]]


def test_nvidia_refuses_images_and_texts_that_are_too_long_where_asked(client: FlaskClient) -> None:
    query = {"text": "alpha"}
    image = [{"image": "data:image/png;base64,AA=="}]
    assert refusal(client, "/v1/ranking", query=query, passages=image) == (400, "passages.0.text")
    assert refusal(client, "/v1/ranking", query=query, passages=[{"text": LONG}], truncate="NONE")[0] == 400
    assert refusal(client, "/v1/ranking", query=query, passages=[]) == (400, "passages")


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_vllm_scores_one_with_many_in_input_order(client: FlaskClient, ranking: Any, path: str) -> None:
    answer = ask(client, path, model="fake", text_1="alpha", text_2=TEXTS)
    by_index = {result["index"]: result["relevance_score"] for result in ranking}
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    np.testing.assert_allclose([entry["score"] for entry in answer["data"]], [by_index[i] for i in range(3)], atol=1e-6)


def test_vllm_scores_many_with_as_many_and_refuses_other_lengths(client: FlaskClient) -> None:
    pairs = ask(client, "/v1/score", text_1=["alpha", "beta"], text_2=["beta", "alpha"])["data"]
    alone = ask(client, "/v1/score", text_1="beta", text_2="alpha")["data"]
    assert pairs[1]["score"] == pytest.approx(alone[0]["score"], abs=1e-6)
    assert refusal(client, "/v1/score", text_1=["a", "b"], text_2=["a"]) == (400, "text_2")
    assert refusal(client, "/v1/score", text_1=[], text_2=["a"]) == (400, "text_1")


def test_vllm_pools_dense_vectors_and_refuses_what_it_cannot_obey(client: FlaskClient) -> None:
    data = ask(client, "/pooling", input=TEXTS, dimensions=8)["data"]
    assert [entry["data"] for entry in data] == embeddings(client, TEXTS, dimensions=8)
    assert refusal(client, "/pooling", input="a", truncate_prompt_tokens=4) == (400, "truncate_prompt_tokens")
    assert refusal(client, "/pooling", input="a", use_activation=False) == (400, "use_activation")
    assert refusal(client, "/pooling", input="a", task="classify") == (400, "task")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": ["a"] * 2049}),
        ("/v2/embed", {"texts": ["a"] * 2049}),
        ("/api/embed", {"model": "fake", "input": ["a"] * 2049}),
        ("/v1/score", {"text_1": "a", "text_2": ["a"] * 2049}),
    ],
)
def test_every_adapter_has_the_limits_of_our_own(client: FlaskClient, path: str, body: dict[str, Any]) -> None:
    assert refusal(client, path, **body)[0] == 400
    queued = client.post(path, json=body, headers={"Prefer": "respond-async"})
    assert (queued.status_code, (queued.json or {})["object"]) == (202, "job")
