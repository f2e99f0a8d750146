"""Other services' words for what our own routes take: Voyage, Jina, NVIDIA NIM, Cohere and vLLM share our addresses.

Owns their translation into our fields, before a body is checked, and the refusal of what would change a result and
cannot be obeyed. The fields themselves are in `app.inference.schemas` and `app.jobs.schemas`.
"""

from collections.abc import Mapping
from typing import Any

from tasks.errors import InvalidRequest

__all__ = [
    "EMBEDDING_FIELDS",
    "JOB_FIELDS",
    "RANKING_FIELDS",
    "translate_embeddings",
    "translate_job",
    "translate_ranking",
]

_ROLES = {"passage": "document", "search_document": "document", "search_query": "query"}
# Jina's `task`; None: no instruction for it.
_TASKS = {
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "text-matching": None,
    "classification": None,
    "separation": None,
}
_PRECISIONS = ("float", "float16", "int8", "uint8", "binary", "ubinary")
# Where other services have what `input` is here.
MISNAMED = frozenset({"inputs", "texts", "text", "sentences"})
# Spellings that are looked at; a body without any is left as it is.
EMBEDDING_FIELDS = frozenset(
    {"output_dimension", "embedding_type", "task", "truncation", "truncate", "input_type", "normalized", "modality"}
    | {"late_chunking", "truncate_prompt_tokens"}
    | MISNAMED
)
RANKING_FIELDS = frozenset(
    {
        "on_error",
        "top_k",
        "truncation",
        "truncate",
        "rank_fields",
        "raw_scores",
        "truncate_prompt_tokens",
    }
)
# What a call obeys and a job cannot.
_CALL_FIELDS = frozenset(
    {
        "top_n",
        "return_documents",
        "encoding_format",
        "output_dtype",
        "stream",
    }
)
JOB_FIELDS = EMBEDDING_FIELDS | RANKING_FIELDS | _CALL_FIELDS
# Names that we share with other services.
_OURS = frozenset({"dimensions", "truncate", "input_type"})
# In a query string every value is a string.
_SWITCHES = frozenset(
    {"truncation", "truncate", "normalized", "late_chunking", "raw_scores", "return_documents", "stream"}
)
_BOOLS = {"true": True, "false": False}
_Body = dict[str, Any]


def translate_embeddings(value: Any) -> Any:
    """Return the body of an embeddings call in our words; what is no object comes back as it is.

    Raises:
        InvalidRequest: a field cannot be obeyed, or says another thing than its twin.
    """
    if not isinstance(value, dict) or EMBEDDING_FIELDS.isdisjoint(value):
        return value
    body = {name: field for name, field in value.items() if field is not None}
    _refuse_misnamed(body)
    _rename(body, "output_dimension", "dimensions")
    _reword(body, "input_type", _ROLES)
    _translate_truncation(body)
    _translate_task(body)
    _translate_embedding_type(body)
    _require(body, "normalized", only=True, why="vectors are normalized as the model says")
    _require(body, "late_chunking", only=False, why="texts are embedded each by itself")
    _require(body, "modality", only="text", why="only text is embedded")
    _require(body, "truncate_prompt_tokens", only=-1, why="texts are cut at what the model reads only")
    return body


def translate_ranking(value: Any) -> Any:
    """Return the body of a rerank call in our words; what is no object comes back as it is.

    Raises:
        InvalidRequest: as `translate_embeddings`.
    """
    if not isinstance(value, dict) or RANKING_FIELDS.isdisjoint(value):
        return value
    body = {name: field for name, field in value.items() if field is not None}
    if "top_k" in body:
        _set(body, "top_k", "top_n", body["top_k"])
    _translate_truncation(body)
    _require(body, "on_error", only="fail", why="a document that cannot be scored fails the call")
    _require(body, "raw_scores", only=False, why="scores are always in [0, 1]")
    _require(body, "rank_fields", only=["text"], why="documents are ranked by their text only")
    _require(body, "truncate_prompt_tokens", only=-1, why="texts are cut at what the model reads only")
    return body


def translate_job(value: Any) -> Any:
    """Return the body or the query parameters of a job in our words; what is no object comes back as it is.

    Raises:
        InvalidRequest: as `translate_embeddings`, or a job cannot obey the field.
    """
    if not isinstance(value, dict) or JOB_FIELDS.isdisjoint(value):
        return value
    given = {name: _BOOLS.get(field, field) if _is_switch(name, field) else field for name, field in value.items()}
    if given.pop("on_error", None) not in (None, "item"):
        raise InvalidRequest("on_error: an item of a job that fails fails alone", param="on_error")
    body = translate_ranking(translate_embeddings(given))
    _require(body, "output_dtype", only="float", why="a job keeps its vectors as `dtype` says, float32 or float16")
    _require(body, "encoding_format", only="float", why="a job's results are written as their reader asks for them")
    _require(body, "stream", only=False, why="a job that runs is read by results?follow=true")
    _require(body, "return_documents", only=False, why="a job's results are scores by position")
    for name in ("top_k", "top_n"):
        if body.get(name) is not None:
            raise InvalidRequest(f"{name}: a job scores all documents, as far as the model reads them", param=name)
    # What is left of other services' words says what a job does anyway.
    return {name: field for name, field in body.items() if name not in JOB_FIELDS or name in _OURS}


def _refuse_misnamed(body: _Body) -> None:
    named = sorted(MISNAMED & body.keys())
    if named and body.get("type") != "rerank" and "input" not in body and "input_file_id" not in body:
        raise InvalidRequest(f"input: the texts go into `input` here, not into `{named[0]}`", param="input")


def _is_switch(name: str, field: Any) -> bool:
    return name in _SWITCHES and isinstance(field, str)


def _set(body: _Body, spelled: str, name: str, field: Any) -> None:
    if body.setdefault(name, field) != field:
        raise InvalidRequest(f"{spelled} and {name} mean the same, and say different things", param=spelled)


def _rename(body: _Body, spelled: str, name: str) -> None:
    if spelled in body:
        _set(body, spelled, name, body.pop(spelled))


def _reword(body: _Body, name: str, words: Mapping[str, str]) -> None:
    word = body.get(name)
    if isinstance(word, str):
        body[name] = words.get(word.lower(), word.lower())


def _translate_truncation(body: _Body) -> None:
    """Read NIM's NONE, START and END, Jina's `truncate` as a bool, and Voyage's `truncation`."""
    word = body.get("truncate")
    if isinstance(word, bool):
        body["truncate"] = "end" if word else "none"
    elif isinstance(word, str):
        body["truncate"] = word.lower()
    if "truncation" in body:
        if not isinstance(body["truncation"], bool):
            raise InvalidRequest("truncation: must be true or false", param="truncation")
        _set(body, "truncation", "truncate", "end" if body["truncation"] else "none")


def _translate_task(body: _Body) -> None:
    if "task" not in body:
        return
    task = body.pop("task")
    if not isinstance(task, str) or task not in _TASKS:
        raise InvalidRequest(f"task: must be one of {', '.join(_TASKS)}", param="task")
    if (role := _TASKS[task]) is not None:
        _set(body, "task", "input_type", role)


def _translate_embedding_type(body: _Body) -> None:
    """Read Jina's `embedding_type`: one of several precisions, or base64, alone or in a list."""
    if "embedding_type" not in body:
        return
    kind = body.pop("embedding_type")
    (kind,) = kind if isinstance(kind, list) and len(kind) == 1 else (kind,)
    if kind == "base64":
        _set(body, "embedding_type", "encoding_format", kind)
    elif isinstance(kind, str) and kind in _PRECISIONS:
        _set(body, "embedding_type", "output_dtype", kind)
    else:
        raise InvalidRequest(
            f"embedding_type: must be one of {', '.join((*_PRECISIONS, 'base64'))}", param="embedding_type"
        )


def _require(body: _Body, name: str, *, only: Any, why: str) -> None:
    # True is 1 to Python, and a JSON body that says 1 did not say true.
    if name in body and (body[name] != only or type(body[name]) is not type(only)):
        raise InvalidRequest(f"{name}: {why}", param=name)
