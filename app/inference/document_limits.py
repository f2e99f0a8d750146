"""Limits per document of a rerank call: obeyed where they change nothing, else refused.

Owns the proof that they change nothing, which needs no tokenizer: a text has at most as many tokens as bytes, but for
the few special ones. A model reads a document in one piece and cuts what is too long.
"""

from collections.abc import Iterable

from app.fields import document_text
from app.inference.schemas import RerankRequest
from config.catalog import ModelCard
from tasks.errors import InvalidRequest

__all__ = ["require_whole_documents"]

_SPECIAL_TOKENS = 4


def require_whole_documents(body: RerankRequest, card: ModelCard) -> None:
    """Refuse `max_tokens_per_doc` and `max_chunks_per_doc` where they might change a score.

    Raises:
        InvalidRequest: a document may be longer than the limit, which is below what the model reads; or it may not fit
            into the one piece that the model reads.
    """
    texts = [document_text(document) for document in body.documents]
    limit = body.max_tokens_per_doc
    if limit is not None and limit < card.max_tokens and _longest_bytes(texts) > limit:
        message = (
            f"max_tokens_per_doc: a document may have more than {limit} tokens; {card.name} cuts documents at the "
            f"{card.max_tokens} tokens that it reads, and nowhere else"
        )
        raise InvalidRequest(message, param="max_tokens_per_doc")
    room = card.max_tokens - _SPECIAL_TOKENS - len(body.query.encode())
    if (body.max_chunks_per_doc or 1) > 1 and _longest_bytes(texts) > room:
        message = f"max_chunks_per_doc: a document may not fit into the {card.max_tokens} tokens that {card.name} reads"
        raise InvalidRequest(f"{message}, and documents are not cut into chunks", param="max_chunks_per_doc")


def _longest_bytes(texts: Iterable[str]) -> int:
    return max(len(text.encode()) for text in texts)
