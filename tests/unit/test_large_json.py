"""Large JSON bodies: their values are counted outside of strings, and what a schema ignores costs next to nothing."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.bodies import load_json, parse_json
from app.http.large_json import count_values, parse_fields
from app.inference.schemas import EmbeddingsRequest, RerankRequest
from app.jobs.schemas import JobRequest
from tasks.errors import InvalidRequest, TooLarge

VALUES = st.recursive(
    st.none() | st.integers() | st.text('ab,[{"\\é\n', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('k,[{"\\', max_size=3), inner, max_size=4),
    max_leaves=30,
)


def structural(value: Any) -> int:
    """Commas, brackets and braces that a value is written with."""
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(structural, value.values()))
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(structural, value))
    return 0


@given(VALUES)
def test_what_stands_in_strings_is_not_counted(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert count_values(text.encode(), 0) == structural(value)


def test_strings_are_followed_over_the_blocks_of_a_long_text() -> None:
    value = ["x" * 700_000 + ",[{" * 300_000, {"a": 1}, "," * 900_000]
    assert count_values(json.dumps(value).encode(), 0) == structural(value)


@pytest.mark.parametrize("model", [EmbeddingsRequest, RerankRequest, JobRequest])
def test_a_field_that_no_schema_reads_becomes_no_object(model: type[Any]) -> None:
    body = b'{"model": "fake", "input": "a", "ignored": [' + b"[]," * 200_000 + b"[]]}"
    tracemalloc.start()
    try:
        fields = parse_fields(body, model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fields["model"] == "fake"
    assert "ignored" not in fields
    assert peak < 2 * len(body)


def test_the_fields_that_are_read_are_those_of_a_small_body() -> None:
    body = {"model": "m", "input": ["x"], "return": ["dense"], "task": "retrieval.query", "output_dimension": 8}
    assert parse_fields(json.dumps({**body, "more": 1}).encode(), EmbeddingsRequest) == body
    assert parse_fields(b"\xef\xbb\xbf" + json.dumps(body).encode(), EmbeddingsRequest) == body
    whole = {**body, "more": 1}
    assert parse_fields(json.dumps(whole).encode(), None) == whole


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"model": "\\ud800"}', b'{"model": NaN}', b'{"model": "\xff"}'])
def test_a_large_body_that_is_no_object_is_refused_as_a_small_one_is(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        parse_json(body, lambda text: parse_fields(text, EmbeddingsRequest))


def test_millions_of_values_are_refused_before_they_are_made() -> None:
    with pytest.raises(TooLarge, match="NDJSON"):
        load_json(b'{"a": [' + b"0," * 3_000_000 + b"0]}")
    assert load_json(json.dumps({"a": "," * 3_000_000}).encode()) == {"a": "," * 3_000_000}
