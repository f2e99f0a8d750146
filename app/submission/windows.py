"""What a request says of texts that are longer than the model reads, as windows.

Owns which fields go together. Cutting and joining are the worker's business (`workers.engine.long_texts`).
"""

from collections.abc import Callable
from typing import Any

from config.catalog import ModelCard
from tasks.engine import Operation, Windows
from tasks.errors import InvalidRequest
from tasks.vectors import DENSE_ONLY

__all__ = ["Asked", "choose_windows"]

Asked = Callable[[str], Any]
# Where a call says by how much windows overlap and not how many there may be.
_MOST_WINDOWS = 1024
_OF_RERANK = ("max_chunks_per_doc", "max_tokens_per_doc")


def choose_windows(card: ModelCard, operation: Operation, asked: Asked) -> Windows | None:
    """Return how texts are read that are too long; None: they are truncated.

    Args:
        card: the model.
        operation: what is computed.
        asked: gives the value of a field, None where the request has none.

    Raises:
        InvalidRequest: fields that do not go together, or not with the operation.
    """
    return _windows_of_documents(card, asked) if operation == "rerank" else _windows_of_texts(card, asked)


def _windows_of_texts(card: ModelCard, asked: Asked) -> Windows | None:
    for name in _OF_RERANK:
        if asked(name) is not None:
            raise InvalidRequest(f"{name} is for rerank; `long` says how long texts are embedded", param=name)
    pooling, size, overlap = asked("long"), asked("chunk_tokens"), asked("overlap_tokens")
    if pooling is None:
        for name in ("chunk_tokens", "overlap_tokens"):
            if asked(name) is not None:
                raise InvalidRequest(f"{name} goes with `long`, which says what becomes of windows", param=name)
        return None
    if tuple(asked("returns") or card.kinds[:1] or DENSE_ONLY) != DENSE_ONLY:
        raise InvalidRequest("long is for dense vectors, and no other kinds", param="long")
    _require_half(overlap, min(size or card.max_tokens, card.max_tokens), "chunk_tokens")
    return Windows(pooling, size, overlap)


def _windows_of_documents(card: ModelCard, asked: Asked) -> Windows | None:
    for name in ("long", "chunk_tokens"):
        if asked(name) is not None:
            message = f"{name} is for embeddings; max_chunks_per_doc has documents read in windows"
            raise InvalidRequest(message, param=name)
    size, most, overlap = asked("max_tokens_per_doc"), asked("max_chunks_per_doc"), asked("overlap_tokens")
    if size is not None and size < card.max_tokens:
        if (most or 1) > 1 or overlap is not None:
            message = "max_tokens_per_doc cuts documents, and max_chunks_per_doc reads on: say one of them"
            raise InvalidRequest(message, param="max_tokens_per_doc")
        return Windows("max", size, 0, 1)
    if overlap is None:
        return Windows("max", most=most) if (most or 1) > 1 else None
    # A query leaves a quarter of what the model reads at least.
    _require_half(overlap, card.max_tokens // 4, "a window")
    return Windows("max", None, overlap, most or _MOST_WINDOWS) if most != 1 else None


def _require_half(overlap: int | None, size: int, name: str) -> None:
    if overlap is not None and overlap > size // 2:
        raise InvalidRequest(f"overlap_tokens: at most half of {name}, {size // 2} here", param="overlap_tokens")
