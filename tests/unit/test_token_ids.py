"""Token ids of clients that know only OpenAI's vocabulary."""

import pytest

from app.inference.token_ids import decode_cl100k, read_texts
from config.catalog import ModelCard, load_catalog
from tasks.errors import InvalidRequest

CARD = next(card for card in load_catalog() if card.name == "fake")


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([15339, 1917], "hello world"),
        ([9906, 11, 1917, 0], "Hello, world!"),
        ([57668, 53901], "你好"),
        ([9468, 239, 222], "👀"),
        ([100257], "<|endoftext|>"),
    ],
)
def test_ids_become_the_text_that_openai_would_read(ids: list[int], text: str) -> None:
    assert decode_cl100k(ids) == text


def test_half_a_character_becomes_a_replacement_character() -> None:
    assert decode_cl100k([9468]) == "\ufffd"


@pytest.mark.parametrize("token", [100_256, 100_261, 2**63])
def test_an_id_behind_the_vocabulary_is_refused_with_its_position(token: int) -> None:
    with pytest.raises(InvalidRequest, match=r"item 1.*cl100k") as refused:
        list(read_texts([[15339], [token]], CARD))
    assert refused.value.param == "input"


def test_a_model_that_takes_no_ids_names_the_client_setting_that_helps() -> None:
    card = ModelCard.model_validate({**CARD.model_dump(), "token_ids": "reject"})
    with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
        list(read_texts([[15339]], card))


def test_texts_stay_as_they_are() -> None:
    assert list(read_texts("one", CARD)) == ["one"]
    assert list(read_texts(["", "two"], CARD)) == ["", "two"]
