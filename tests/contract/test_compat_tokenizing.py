"""`/tokenize` and `/detokenize` over HTTP, in both shapes; with the fake model, whose tokens are words."""

from typing import Any

import pytest
from flask.testing import FlaskClient

TEXT = "alpha  beta"


def ask(client: FlaskClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.json
    return answer.json


def test_inputs_get_the_tokens_of_text_embeddings_inference(client: FlaskClient) -> None:
    first, second = ask(client, "/tokenize", inputs=[TEXT, ""])
    assert [(token["text"], token["special"], token["start"], token["stop"]) for token in first] == [
        ("<begin>", True, None, None),
        ("alpha", False, 0, 5),
        ("beta", False, 7, 11),
        ("<end>", True, None, None),
    ]
    assert [token["text"] for token in second] == ["<begin>", "<end>"]
    (plain,) = ask(client, "/tokenize", inputs=TEXT, add_special_tokens=False, model="fake")
    assert plain == first[1:3]


def test_a_prompt_gets_vllms_answer(client: FlaskClient) -> None:
    answer = ask(client, "/tokenize", model="fake", prompt=TEXT, return_token_strs=True)
    assert answer["token_strs"] == ["<begin>", "alpha", "beta", "<end>"]
    assert (answer["count"], answer["max_model_len"]) == (4, 512)
    assert ask(client, "/tokenize", prompt=TEXT) == {**answer, "token_strs": None}
    assert ask(client, "/detokenize", tokens=[7, 9]) == {"prompt": "#7 #9"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "inputs": "a"}),
        ("/tokenize", {"inputs": []}),
        ("/tokenize", {"inputs": ["a"] * 2049}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [2**40]}),
    ],
)
def test_what_cannot_be_done_is_refused(client: FlaskClient, path: str, body: dict[str, Any]) -> None:
    assert client.post(path, json=body).status_code == 400
    assert client.post(path, json={**body, "model": "unknown"}).status_code in {400, 404}
