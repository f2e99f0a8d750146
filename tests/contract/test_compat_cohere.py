"""Cohere's embed routes, as its API reference and its clients spell them."""

import base64
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from app.vector_formats import quantize

TEXTS = ["alpha", "beta"]


def ask(client: FlaskClient, path: str = "/v2/embed", **body: Any) -> Any:
    answer = client.post(path, json={"model": "fake", "input_type": "classification", **body})
    assert answer.status_code == 200, answer.json
    return answer.json


def refusal(client: FlaskClient, path: str = "/v2/embed", **body: Any) -> tuple[int, str | None]:
    answer = client.post(path, json={"model": "fake", **body})
    return answer.status_code, (answer.json or {})["error"]["param"]


def embeddings(client: FlaskClient, texts: list[str], **fields: Any) -> Any:
    body = client.post("/v1/embeddings", json={"model": "fake", "input": texts, **fields}).json or {}
    return [entry["embedding"] for entry in body["data"]]


def test_all_types_of_an_answer_come_from_one_vector(client: FlaskClient) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = ask(client, texts=TEXTS, embedding_types=types, output_dimension=32)
    got, vectors = answer["embeddings"], np.array(embeddings(client, TEXTS, dimensions=32), np.float32)
    assert list(got) == types
    np.testing.assert_array_equal(np.array(got["float"], np.float32), vectors)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        np.testing.assert_array_equal(got[precision], quantize(vectors, precision))
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in got["base64"]]
    np.testing.assert_array_equal(decoded, vectors)
    assert len(got["ubinary"][0]) == 4


def test_version_2_always_answers_by_type(client: FlaskClient) -> None:
    answer = ask(client, texts=TEXTS)
    assert (answer["response_type"], answer["texts"]) == ("embeddings_by_type", TEXTS)
    assert answer["embeddings"] == {"float": embeddings(client, TEXTS)}
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["meta"]["billed_units"]["input_tokens"] > 0


def test_version_1_answers_with_a_list_unless_types_are_named(client: FlaskClient) -> None:
    plain = ask(client, "/v1/embed", texts=TEXTS)
    assert (plain["response_type"], plain["embeddings"]) == ("embeddings_floats", embeddings(client, TEXTS))
    typed = ask(client, "/v1/embed", texts=TEXTS, embedding_types=["int8"])
    assert (typed["response_type"], list(typed["embeddings"])) == ("embeddings_by_type", ["int8"])


def test_the_kind_of_a_text_changes_its_vector_as_with_our_own_words(client: FlaskClient) -> None:
    query = ask(client, texts=TEXTS, input_type="search_query")["embeddings"]["float"]
    assert query == embeddings(client, TEXTS, input_type="query")


def test_texts_are_cut_where_truncate_says(client: FlaskClient) -> None:
    text = "first " + "word " * 2000 + "last"
    cuts = {where: ask(client, texts=[text], truncate=where)["embeddings"]["float"] for where in ("START", "END")}
    assert cuts["START"] == embeddings(client, [text], truncate="start")
    assert cuts["END"] == embeddings(client, [text])
    assert refusal(client, texts=[text], truncate="NONE")[0] == 400


def test_inputs_of_several_parts_are_texts_joined(client: FlaskClient) -> None:
    parts = [{"type": "text", "text": "alpha"}, {"type": "text", "text": "beta"}]
    assert ask(client, inputs=[{"content": parts}])["embeddings"]["float"] == embeddings(client, ["alpha\nbeta"])
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    assert refusal(client, inputs=[{"content": image}])[0] == 400


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("texts", {}),
        ("texts", {"texts": []}),
        ("images", {"images": ["data:image/png;base64,AA=="]}),
        ("input_type", {"texts": TEXTS, "input_type": "image"}),
        ("truncate", {"texts": TEXTS, "truncate": "MIDDLE"}),
        ("max_tokens", {"texts": TEXTS, "max_tokens": 10}),
        ("dimensions", {"texts": TEXTS, "output_dimension": 65}),
        ("embedding_types.0", {"texts": TEXTS, "embedding_types": ["int4"]}),
    ],
)
def test_what_cannot_be_obeyed_is_refused(client: FlaskClient, param: str, body: dict[str, Any]) -> None:
    assert refusal(client, **body) == (400, param)


def test_a_limit_at_or_above_the_models_own_is_obeyed(client: FlaskClient) -> None:
    assert ask(client, texts=TEXTS, max_tokens=512)["embeddings"]["float"] == embeddings(client, TEXTS)
