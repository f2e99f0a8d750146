"""What the bodies take and what they refuse, with the field's name."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.inference.schemas import EmbeddingsRequest, RerankRequest
from app.jobs.schemas import JobRequest

E = {"model": "m", "input": "text"}
R = {"model": "m", "query": "q", "documents": ["a"]}


def refused_field(model: type[Any], body: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(body)
    return str(refused.value.errors()[0]["loc"][0]) if refused.value.errors()[0]["loc"] else ""


@pytest.mark.parametrize(
    ("given", "understood"),
    [("one", "one"), (["a", ""], ["a", ""]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_all_kinds_of_input_are_understood(given: Any, understood: Any) -> None:
    assert EmbeddingsRequest.model_validate({**E, "input": given}).input == understood


@pytest.mark.parametrize(
    "value",
    [None, [], {}, 1, True, 1.5, [None], ["a", None], ["a", 1], [1, "a"], [[]], [[1], "a"], [[1], []], [["a"]],
     [True], [1, True], [-1], [1.0], [[-1]], [[1.5]], [[[1]]], [{"text": "a"}]],
)  # fmt: skip
def test_every_other_input_is_refused_by_name(value: Any) -> None:
    assert refused_field(EmbeddingsRequest, {**E, "input": value}) == "input"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", ""),
        ("model", 3),
        ("encoding_format", "hex"),
        ("dimensions", 0),
        ("dimensions", -1),
        ("dimensions", True),
        ("dimensions", "8"),
        ("dimensions", 8.0),
        ("input_type", "clustering"),
        ("truncate", "middle"),
        ("return", ["dense", "other"]),
        ("return", []),
        ("instruction", ["a"]),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(field: str, value: Any) -> None:
    assert refused_field(EmbeddingsRequest, {**E, field: value}) == field


def test_null_means_absent_and_unknown_fields_are_ignored() -> None:
    names = ("encoding_format", "dimensions", "user", "input_type", "instruction", "truncate", "return", "task")
    EmbeddingsRequest.model_validate({**E, **dict.fromkeys(names), "unheard": 1})
    names = ("max_chunks_per_doc", "max_tokens_per_doc", "rank_fields", "truncate", "raw_scores", "top_k", "truncation")
    RerankRequest.model_validate({**R, "top_n": None, "return_documents": None, **dict.fromkeys(names), "priority": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("query", None),
        ("query", ["q"]),
        ("documents", None),
        ("documents", []),
        ("documents", "a"),
        ("documents", [1]),
        ("documents", ["a", None]),
        ("documents", [{"txt": "a"}]),
        ("documents", [{"text": None}]),
        ("top_n", 0),
        ("top_n", -1),
        ("top_n", True),
        ("return_documents", "yes"),
        ("return_documents", 1),
    ],
)
def test_a_rerank_field_of_the_wrong_kind_is_refused_by_name(field: str, value: Any) -> None:
    assert refused_field(RerankRequest, {**R, field: value}) == field


def test_a_job_of_pairs_keeps_the_order_of_queries_and_documents() -> None:
    body = {
        "type": "rerank",
        "model": "m",
        "queries": [{"query": "p", "documents": ["a", {"text": "b", "id": "B"}]}, {"query": "q", "documents": ["c"]}],
    }
    items = JobRequest.model_validate(body).items()
    assert [(item.query, item.text, item.id) for item in items] == [("p", "a", None), ("p", "b", "B"), ("q", "c", None)]


@pytest.mark.parametrize(
    "body",
    [
        {"type": "embeddings", "model": "m"},
        {"type": "rerank", "model": "m", "query": "q"},
        {"type": "rerank", "model": "m", "documents": ["a"]},
        {"type": "rerank", "model": "m", "queries": []},
        {"type": "chat", "model": "m", "input": ["a"]},
        {"type": "embeddings", "model": "m", "input": []},
        {"type": "embeddings", "model": "m", "input": [{"id": 7.5, "text": "a"}]},
        {"type": "embeddings", "model": "m", "input": [1]},
        {"type": "embeddings", "model": "m", "input": ["a"], "metadata": {"k": 1}},
        {"type": "embeddings", "model": "m", "input": ["a"], "dtype": "int8"},
    ],
)
def test_a_job_without_its_items_or_with_wrong_ones_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobRequest.model_validate(body)
