"""Other services' words on our own routes become ours, and what cannot be obeyed is refused by its name."""

from typing import Any

import pytest

from app.inference.schemas import EmbeddingsRequest, RerankRequest
from app.jobs.schemas import JobRequest, SubmitOptions
from tasks.errors import InvalidRequest

E = {"model": "m", "input": "a"}
R = {"model": "m", "query": "q", "documents": ["a"]}


@pytest.mark.parametrize(
    ("spelled", "ours"),
    [
        ({"output_dimension": 8}, {"dimensions": 8}),
        ({"output_dimension": 8, "dimensions": 8}, {"dimensions": 8}),
        ({"input_type": "passage", "truncate": "NONE"}, {"input_type": "document", "truncate": "none"}),
        ({"input_type": "search_query", "truncate": "START"}, {"input_type": "query", "truncate": "start"}),
        ({"truncation": True, "input_type": None}, {"truncate": "end", "input_type": None}),
        ({"truncation": False}, {"truncate": "none"}),
        ({"task": "retrieval.query", "truncate": True}, {"input_type": "query", "truncate": "end"}),
        ({"task": "text-matching", "normalized": True, "late_chunking": False}, {"input_type": None}),
        ({"embedding_type": "ubinary"}, {"output_dtype": "ubinary", "encoding_format": None}),
        ({"embedding_type": ["base64"]}, {"output_dtype": None, "encoding_format": "base64"}),
        ({"modality": "text", "truncate_prompt_tokens": -1}, {"truncate": None}),
    ],
)
def test_an_embeddings_call_may_use_other_words(spelled: dict[str, Any], ours: dict[str, Any]) -> None:
    body = EmbeddingsRequest.model_validate({**E, **spelled})
    assert {name: getattr(body, name) for name in ours} == ours


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("output_dimension", {"output_dimension": 8, "dimensions": 16}),
        ("truncation", {"truncation": "yes"}),
        ("truncation", {"truncation": True, "truncate": "none"}),
        ("task", {"task": "poetry"}),
        ("task", {"task": "retrieval.query", "input_type": "document"}),
        ("task", {"task": ["retrieval.query"]}),
        ("embedding_type", {"embedding_type": "int4"}),
        ("embedding_type", {"embedding_type": ["float", "int8"]}),
        ("normalized", {"normalized": False}),
        ("normalized", {"normalized": 1}),
        ("late_chunking", {"late_chunking": True}),
        ("modality", {"modality": "image"}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 4}),
    ],
)
def test_an_embeddings_field_that_cannot_be_obeyed_is_refused(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EmbeddingsRequest.model_validate({**E, **body})
    assert caught.value.param == param


def test_a_rerank_call_may_use_other_words() -> None:
    body = RerankRequest.model_validate({**R, "top_k": 2, "truncation": False, "rank_fields": ["text"]})
    assert (body.top_n, body.truncate, body.for_voyage) == (2, "none", True)
    plain = RerankRequest.model_validate({**R, "top_n": 2, "truncate": "END", "raw_scores": False})
    assert (plain.top_n, plain.truncate, plain.for_voyage) == (2, "end", False)


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("top_k", {"top_k": 2, "top_n": 3}),
        ("raw_scores", {"raw_scores": True}),
        ("rank_fields", {"rank_fields": ["title", "text"]}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 4}),
    ],
)
def test_a_rerank_field_that_cannot_be_obeyed_is_refused(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        RerankRequest.model_validate({**R, **body})
    assert caught.value.param == param


@pytest.mark.parametrize("value", [None, [], "text", {}])
def test_what_is_no_body_is_left_to_the_schema(value: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        EmbeddingsRequest.model_validate(value)


@pytest.mark.parametrize(
    ("given", "field", "meant"),
    [
        ({"output_dimension": 64}, "dimensions", 64),
        ({"truncate": "NONE"}, "truncate", "none"),
        ({"truncate": True}, "truncate", "end"),
        ({"truncation": False}, "truncate", "none"),
        ({"input_type": "SEARCH_QUERY"}, "input_type", "query"),
        ({"task": "retrieval.passage"}, "input_type", "document"),
        ({"embedding_type": "float", "encoding_format": None, "top_k": None}, "dimensions", None),
    ],
)
def test_a_job_and_the_parameters_of_an_upload_are_read_like_a_call(
    given: dict[str, Any], field: str, meant: Any
) -> None:
    job = JobRequest.model_validate({"type": "embeddings", "model": "m", "input": ["a"], **given})
    assert getattr(job, field) == meant
    query = {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items() if value
    }
    query |= {"truncation": "false"} if "truncation" in given else {}
    assert getattr(SubmitOptions.model_validate(query), field) == meant


@pytest.mark.parametrize(
    "given",
    [{"output_dtype": "int8"}, {"embedding_type": "binary"}, {"late_chunking": True}, {"task": "none"}, {"top_n": 3},
     {"top_k": 3}, {"return_documents": True}, {"encoding_format": "base64"}, {"rank_fields": ["title"]}],
)  # fmt: skip
def test_a_job_refuses_what_it_cannot_obey(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        JobRequest.model_validate({"type": "rerank", "model": "m", "query": "q", "documents": ["a"], **given})
    with pytest.raises(InvalidRequest):
        SubmitOptions.model_validate({name: str(value).lower() for name, value in given.items()})


def test_items_of_a_job_fail_alone_whether_that_is_asked_for_or_not() -> None:
    for asked in ({}, {"on_error": None}, {"on_error": "item"}):
        assert JobRequest.model_validate({"type": "embeddings", "model": "m", "input": ["a"], **asked})
    with pytest.raises(InvalidRequest) as caught:
        JobRequest.model_validate({"type": "embeddings", "model": "m", "input": ["a"], "on_error": "fail"})
    assert caught.value.param == "on_error"
