"""What clients send, replayed as raw HTTP: the bodies are those that the libraries were seen to send.

Seen with openai 2.54 and 3.52 (Python) and 6.49 (Node), cohere 7.3, litellm 1.106, langchain-openai 1.7,
llama-index 0.14, haystack 3.4 and chromadb 1.5; those of FastGPT and Jina as documented. The libraries run in
`test_clients.py`; these tests say which detail broke. open-webui and Dify: `test_product_contracts.py`.
"""

import base64
import contextlib
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from config.new_key import new_key
from config.settings import Settings
from tests.support.client_pages import TEXTS
from tests.support.product import MODEL, reference
from tests.support.stack_fixture import RunningStack
from tests.support.web import opened_app

BEARER = {"Authorization": "Bearer none"}
QUESTION = "What makes the sea rise and fall?"
DOCUMENTS = ["Yeast makes bread rise.", "The tide follows the moon.", "Cats sleep a lot."]
RERANK = {"model": MODEL, "query": QUESTION, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def http(stack: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    answer = http.post(path, json=body, headers=BEARER if headers is None else headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"]
    return answer.json()


def decode(text: str) -> NDArray[np.float32]:
    """As both OpenAI libraries do it: little-endian float32."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


def vectors(answer: Any) -> NDArray[np.float32]:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    assert {item["object"] for item in answer["data"]} == {"embedding"}
    embeddings = (item["embedding"] for item in answer["data"])
    return np.stack([decode(one) if isinstance(one, str) else np.array(one, np.float32) for one in embeddings])


def order(answer: Any) -> list[int]:
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    return [result["index"] for result in answer["results"]]


# -- embeddings


def test_openai_asks_for_base64_and_gets_little_endian_float32(http: httpx.Client) -> None:
    answer = ask(http, "/v1/embeddings", {"input": TEXTS, "model": MODEL, "encoding_format": "base64"})
    assert {type(item["embedding"]) for item in answer["data"]} == {str}
    np.testing.assert_allclose(vectors(answer), reference(TEXTS), atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert (answer["object"], answer["model"]) == ("list", MODEL)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"model": MODEL, "input": TEXTS}, id="litellm"),
        pytest.param({"input": TEXTS, "model": MODEL, "encoding_format": "float"}, id="haystack"),
        pytest.param({"input": TEXTS, "model": MODEL, "input_type": "document"}, id="open-webui-with-prefix-field"),
        pytest.param({"input": TEXTS, "model": MODEL, "user": None, "dimensions": None}, id="null-is-absent"),
        pytest.param({"input": TEXTS, "model": MODEL, "task": "retrieval.passage", "normalized": True}, id="jina"),
    ],
)
def test_without_a_format_vectors_are_numbers_and_unknown_fields_do_no_harm(http: httpx.Client, body: Any) -> None:
    answer = ask(http, "/v1/embeddings", body)
    assert {type(item["embedding"]) for item in answer["data"]} == {list}
    np.testing.assert_allclose(vectors(answer), reference(TEXTS), atol=1e-5)


def test_langchain_sends_cl100k_ids_which_mean_the_texts(http: httpx.Client) -> None:
    ids = [[791, 43038, 11263, 279, 18266, 13], [56, 61601, 3727, 16385, 10205, 13]]
    as_ids = ask(http, "/v1/embeddings", {"input": ids, "model": MODEL, "encoding_format": "base64"})
    as_texts = ask(http, "/v1/embeddings", {"input": TEXTS, "model": MODEL, "encoding_format": "base64"})
    np.testing.assert_allclose(vectors(as_ids), vectors(as_texts), atol=1e-6)
    assert as_ids["usage"] == as_texts["usage"]


def test_langchain_averages_parts_of_a_long_text_that_come_in_one_call(http: httpx.Client) -> None:
    long = {"input": [[791] * 8191, [791] * 500], "model": MODEL, "encoding_format": "base64"}
    np.testing.assert_allclose(np.linalg.norm(vectors(ask(http, "/v1/embeddings", long)), axis=1), 1, atol=1e-5)


def test_chromadb_sends_all_documents_in_one_call(http: httpx.Client) -> None:
    texts = [f"Passage number {number} of a collection." for number in range(2048)]
    got = vectors(ask(http, "/v1/embeddings", {"input": texts, "model": MODEL, "encoding_format": "base64"}))
    assert got.shape == (2048, 384)
    some = [0, 1023, 2047]
    np.testing.assert_allclose(got[some], reference([texts[i] for i in some]), atol=1e-4)


def test_more_than_a_call_takes_is_refused_with_the_ways_to_queue_it(http: httpx.Client) -> None:
    body = {"input": ["a"] * 2049, "model": MODEL, "encoding_format": "base64"}
    answer = http.post("/v1/embeddings", json=body, headers=BEARER)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert "/v1/jobs" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\u200b"])
def test_a_blank_text_has_a_finite_unit_vector(http: httpx.Client, text: str) -> None:
    for body in (text, [text, "word"]):
        got = vectors(ask(http, "/v1/embeddings", {"input": body, "model": MODEL}))
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


# -- rerank


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
def test_litellm_asks_for_documents_on_every_path_and_gets_objects(http: httpx.Client, path: str) -> None:
    answer = ask(http, path, {**RERANK, "return_documents": True})
    assert order(answer)[0] == 1
    assert [result["document"] for result in answer["results"]] == [{"text": DOCUMENTS[i]} for i in order(answer)]
    # litellm builds its own answer from these and fails when one is missing.
    assert answer["meta"]["billed_units"]["search_units"] == 1
    assert answer["meta"]["tokens"]["input_tokens"] == answer["usage"]["total_tokens"] > 0
    assert isinstance(answer["id"], str)


def test_clients_of_infinity_get_documents_as_strings_under_their_own_address(http: httpx.Client) -> None:
    documents = [{"text": DOCUMENTS[0], "title": "Bread"}, DOCUMENTS[1]]
    answer = ask(http, "/infinity/rerank", {**RERANK, "documents": documents, "return_documents": True})
    assert [result["document"] for result in answer["results"]] == [DOCUMENTS[1], DOCUMENTS[0]]
    assert all("document" not in result for result in ask(http, "/infinity/rerank", RERANK)["results"])


def test_cohere_v2_has_no_v1_in_its_path_and_wants_no_documents_back(http: httpx.Client) -> None:
    answer = ask(http, "/v2/rerank", {**RERANK, "top_n": 2})
    assert len(order(answer)) == 2
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])
    assert answer["meta"]["api_version"]["version"] == "2"


def test_cohere_v1_sends_objects_and_fields_of_its_own(http: httpx.Client) -> None:
    documents = [{"text": DOCUMENTS[0], "title": "Bread"}, DOCUMENTS[1]]
    body = {**RERANK, "documents": documents, "rank_fields": ["text"], "max_chunks_per_doc": 10}
    answer = ask(http, "/v1/rerank", {**body, "return_documents": True})
    assert [result["document"] for result in answer["results"]] == [{"text": DOCUMENTS[1]}, documents[0]]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"top_n": None}, id="dify-core"),
        pytest.param({}, id="fastgpt"),
        pytest.param({"top_n": len(DOCUMENTS)}, id="open-webui-and-difys-plugin"),
        pytest.param({"top_n": 50, "return_documents": None}, id="more-than-there-are"),
    ],
)
def test_who_asks_for_no_part_gets_every_index(http: httpx.Client, fields: dict[str, Any]) -> None:
    assert sorted(order(ask(http, "/v1/rerank", {**RERANK, **fields}))) == [0, 1, 2]


def test_jina_reads_detail_of_an_error_and_openai_reads_error(http: httpx.Client) -> None:
    answer = http.post("/v1/rerank", json={**RERANK, "model": "jina-reranker-v3"}, headers=BEARER)
    assert answer.status_code == 404
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "model_not_found"


# -- models and keys


@pytest.mark.parametrize("name", ["sentence-transformers%2Fall-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_models_name_is_found_with_its_slash_encoded_or_not(stack: RunningStack, name: str) -> None:
    # Not with httpx's own base_url, which would decode the path.
    answer = httpx.get(httpx.URL(stack.url, raw_path=f"/v1/models/{name}".encode()), headers=BEARER)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["id"], answer.json()["object"]) == (MODEL, "model")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="langchain-communitys-infinity"),
        pytest.param({"Authorization": ""}, id="dify-without-a-key"),
        pytest.param({"Authorization": "Bearer "}, id="open-webui-without-a-key"),
    ],
)
def test_an_open_server_answers_who_sends_no_key(stack: RunningStack, headers: dict[str, str]) -> None:
    # Not with httpx, which refuses to send a header that ends in a space.
    with contextlib.closing(HTTPConnection(stack.url.removeprefix("http://"), timeout=60)) as connection:
        body = json.dumps({"input": "a", "model": MODEL})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()


@pytest.mark.parametrize("headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer wrong-key-9f3"}])
def test_a_server_with_keys_refuses_who_sends_none_and_repeats_no_key(
    settings: Settings, headers: dict[str, str]
) -> None:
    path = settings.data_dir / "keys.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[[keys]]\ntenant = "a"\nsha256 = "{new_key()[1]}"\n', "utf-8")
    path.chmod(0o600)
    with opened_app(settings.model_copy(update={"keys_file": path})) as app:
        for url in ("/v1/embeddings", "/v2/rerank", "/infinity/rerank", "/v1/models", "/v1/files"):
            answer = app.test_client().post(url, json=RERANK, headers=headers)
            assert answer.status_code == 401, answer.data
            assert answer.json is not None
            assert answer.json["error"]["code"] == "invalid_api_key"
            assert b"9f3" not in answer.data


# -- what the libraries make of failures


def test_openai_raises_its_own_errors_and_repeats_none_of_them(stack: RunningStack) -> None:
    asked = 0

    def count(_request: httpx.Request) -> None:
        nonlocal asked
        asked += 1

    hooked = httpx.Client(event_hooks={"request": [count]})
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", http_client=hooked) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.embeddings.create(model="none/such", input="a")
        with pytest.raises(openai.BadRequestError) as bad:
            client.embeddings.create(model=MODEL, input="a", dimensions=385)
        with pytest.raises(openai.BadRequestError) as empty:
            client.embeddings.create(model=MODEL, input=[])
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert bad.value.param == "dimensions"
    assert empty.value.param == "input"
    assert empty.value.request_id
    assert asked == 3
