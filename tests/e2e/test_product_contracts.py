"""open-webui and Dify: the requests of their sources, to what their pages have one type in, read as they read them.

Replayed from `retrieval/utils.py` and `retrieval/models/external.py` of open-webui, and from the plugin
`openai_api_compatible` of dify-official-plugins and the SDK beneath it: method, headers, body, and the fields that are
read. The products themselves are not run.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.client_pages import TEXTS, read_setting
from tests.support.product import MODEL, reference
from tests.support.stack_fixture import RunningStack

WEBUI, DIFY = "open-webui.md", "dify.md"
QUESTION = "What makes the sea rise and fall?"
DOCUMENTS = ["Yeast makes bread rise.", "The tide follows the moon.", "Cats sleep a lot."]
# What both HTTP libraries of theirs, requests and aiohttp, add to every call.
LIBRARY = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "Content-Type": "application/json"}
# With ENABLE_FORWARD_USER_INFO_HEADERS; names are percent-encoded.
WEBUI_USER = {
    "X-OpenWebUI-User-Name": "Ada%20L%C3%B6we",
    "X-OpenWebUI-User-Id": "9d1f8c1e-6a53-4f0e-9d43-0d3c7a0c6b1a",
    "X-OpenWebUI-User-Email": "ada@example.com",
    "X-OpenWebUI-User-Role": "user",
}


@pytest.fixture(scope="module")
def http(stack: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as client:
        yield client


def post(stack: RunningStack, http: httpx.Client, url: str, body: Any, headers: dict[str, str]) -> Any:
    """Send to an address of a page what the products' `json=` and `data=json.dumps(..)` put on the wire."""
    assert url.startswith("http://twolane.example:8000/"), url
    url = url.replace("http://twolane.example:8000", stack.url)
    answer = http.post(url, content=json.dumps(body).encode(), headers={**LIBRARY, **headers})
    assert answer.status_code == 200, answer.text
    return answer.json()


# -- open-webui


def webui_bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {read_setting(WEBUI, name)}"}


def webui_embed(
    stack: RunningStack, http: httpx.Client, texts: list[str], prefix: str | None = None, **user: str
) -> list[list[float]]:
    """As `agenerate_openai_batch_embeddings`; with a field for the prefix, that holds the prefix."""
    body: dict[str, Any] = {"input": texts, "model": read_setting(WEBUI, "RAG_EMBEDDING_MODEL")}
    if prefix is not None:
        body[read_setting(WEBUI, "RAG_EMBEDDING_PREFIX_FIELD_NAME")] = prefix
    url = read_setting(WEBUI, "RAG_OPENAI_API_BASE_URL") + "/embeddings"
    data = post(stack, http, url, body, {**webui_bearer("RAG_OPENAI_API_KEY"), **user})
    return [element["embedding"] for element in data["data"]]


def test_open_webui_embeds_a_batch_of_its_chosen_size(stack: RunningStack, http: httpx.Client) -> None:
    size = int(read_setting(WEBUI, "RAG_EMBEDDING_BATCH_SIZE"))
    texts = [*TEXTS, *(f"Chunk number {number} of a document." for number in range(size - len(TEXTS)))]
    vectors = np.array(webui_embed(stack, http, texts, **WEBUI_USER))
    assert vectors.shape == (size, 384)
    np.testing.assert_allclose(vectors[: len(TEXTS)], reference(TEXTS), atol=1e-4)


def test_open_webui_embeds_a_question_as_a_list_of_one(stack: RunningStack, http: httpx.Client) -> None:
    np.testing.assert_allclose(webui_embed(stack, http, [QUESTION]), reference([QUESTION]), atol=1e-4)


@pytest.mark.parametrize("role", ["QUERY", "CONTENT"])
def test_open_webui_sends_its_prefix_in_the_field_that_the_page_names(
    stack: RunningStack, http: httpx.Client, role: str
) -> None:
    prefix = read_setting(WEBUI, f"RAG_EMBEDDING_{role}_PREFIX")
    assert len(webui_embed(stack, http, TEXTS, prefix)) == len(TEXTS)


def test_the_field_of_the_prefix_is_one_that_the_server_reads(stack: RunningStack, http: httpx.Client) -> None:
    field = read_setting(WEBUI, "RAG_EMBEDDING_PREFIX_FIELD_NAME")
    answer = http.post(f"{stack.url}/v1/embeddings", json={"input": TEXTS, "model": MODEL, field: "other"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_open_webui_finds_the_score_of_every_document_by_its_index(stack: RunningStack, http: httpx.Client) -> None:
    """As `ExternalReranker.predict`: scores in the order of the documents, as many as there are."""
    payload = {
        "model": read_setting(WEBUI, "RAG_RERANKING_MODEL"),
        "query": QUESTION,
        "documents": DOCUMENTS,
        "top_n": len(DOCUMENTS),
    }
    url = read_setting(WEBUI, "RAG_EXTERNAL_RERANKER_URL")
    data = post(stack, http, url, payload, {**webui_bearer("RAG_EXTERNAL_RERANKER_API_KEY"), **WEBUI_USER})
    scores = [result["relevance_score"] for result in sorted(data["results"], key=lambda x: x["index"])]
    assert len(scores) == len(DOCUMENTS)
    assert scores.index(max(scores)) == 1


# -- Dify

# An empty key field makes an empty header in the plugin, and no header in the SDK.
DIFY_KEYS = [
    pytest.param({"Authorization": "Bearer none"}, id="with-a-key"),
    pytest.param({"Authorization": ""}, id="plugin-without-a-key"),
    pytest.param({}, id="sdk-without-a-key"),
]


def dify_url(path: str) -> str:
    return read_setting(DIFY, "API Base URL").rstrip("/") + path


@pytest.mark.parametrize("headers", DIFY_KEYS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"model": MODEL, "input": ["ping"]}, id="plugin"),
        pytest.param({"input": "ping", "model": MODEL}, id="sdk"),
    ],
)
def test_dify_checks_an_embedding_model_when_it_is_added(
    stack: RunningStack, http: httpx.Client, body: dict[str, Any], headers: dict[str, str]
) -> None:
    assert "model" in post(stack, http, dify_url("/embeddings"), body, headers)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plugin"),
        pytest.param({"encoding_format": "float"}, id="plugin-set-to-float"),
        pytest.param({"user": "8c0e", "encoding_format": "float"}, id="sdk"),
    ],
)
def test_dify_reads_vectors_in_order_and_the_tokens_used(
    stack: RunningStack, http: httpx.Client, fields: dict[str, Any]
) -> None:
    size = int(read_setting(DIFY, "Model max chunks per batch"))
    texts = [*TEXTS, *(f"Segment {number}" for number in range(size - len(TEXTS)))]
    headers = {"Authorization": "Bearer none"}
    body = {"model": read_setting(DIFY, "Model Name"), "input": texts, **fields}
    result = post(stack, http, dify_url("/embeddings"), body, headers)
    vectors = [data["embedding"] for data in result["data"]]
    assert len(vectors) == size
    np.testing.assert_allclose(vectors[: len(TEXTS)], reference(TEXTS), atol=1e-4)
    usage = result.get("usage") or {}
    assert (usage.get("prompt_tokens") or usage.get("total_tokens") or 0) > size
    assert usage["total_tokens"] > 0
    # Where these are present Dify takes them for prices.
    assert not {"total_price", "unit_price", "price_unit", "currency"} & usage.keys()


def test_older_plugins_of_dify_embed_one_text_a_call(stack: RunningStack, http: httpx.Client) -> None:
    body = {"model": MODEL, "input": TEXTS[0], "encoding_format": "float"}
    result = post(stack, http, dify_url("/embeddings"), body, {"Authorization": "Bearer none"})
    np.testing.assert_allclose([result["data"][0]["embedding"]], reference(TEXTS[:1]), atol=1e-4)
    assert result.get("usage", {}).get("prompt_tokens", 0) > 0


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"top_n": 2}, id="plugin"),
        pytest.param({"top_n": len(DOCUMENTS)}, id="plugin-without-a-number"),
        pytest.param({"top_n": 2, "return_documents": True, "score_threshold": 0.8}, id="older-plugin"),
        pytest.param({"top_n": None, "return_documents": True}, id="sdk"),
    ],
)
@pytest.mark.parametrize("headers", DIFY_KEYS)
def test_dify_ranks_and_reads_index_score_and_text(
    stack: RunningStack, http: httpx.Client, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    payload = {"model": read_setting(DIFY, "Model Name"), "query": QUESTION, "documents": DOCUMENTS, **fields}
    result = post(stack, http, dify_url("/rerank"), payload, headers)
    ranked = []
    for item in result.get("results", []):
        index, score = item.get("index", 0), item.get("relevance_score", 0.0)
        # An answer with a document of another kind than an object raises in older plugins.
        ranked.append((score, item.get("document", {}).get("text", DOCUMENTS[index]), index))
    assert len(ranked) == (fields["top_n"] or len(DOCUMENTS))
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[0][1:] == (DOCUMENTS[1], 1)
    assert all(text == DOCUMENTS[index] for _, text, index in ranked)
    # The SDK puts scores through a sigmoid of its own and compares them with the threshold of the user.
    assert all(0 <= score <= 1 for score, _, _ in ranked)


def test_a_model_that_is_not_there_is_told_to_dify_by_the_status(stack: RunningStack, http: httpx.Client) -> None:
    """Dify shows the status to whoever adds the model: a wrong name must not look like success."""
    url = dify_url("/rerank").replace("http://twolane.example:8000", stack.url)
    answer = http.post(url, json={"model": "not/there", "query": "a", "documents": ["a"], "top_n": 1})
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        answer.raise_for_status()
