"""Texts to ids for models that give a vector for each token: markers in front, and queries filled up.

Owns the difference between queries and documents. What it is follows from the folder (`token_models`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tasks.errors import ConfigError, InvalidRequest
from workers.models.folders.token_models import TokenReading
from workers.models.tokenizing.tokenizer import Encoded, FastTokenizer, Tokens, Truncate

__all__ = ["TokenTokenizer"]


class TokenTokenizer(FastTokenizer):
    """See `workers.models.tokenizing.tokenizer.TextTokenizer`; `encode` reads documents.

    Attributes:
        skipped: ids of tokens that have no vector in documents.
        skips_in_queries: whether they have none in queries either.
    """

    def __init__(self, plain: FastTokenizer, reading: TokenReading, fill_id: int | None) -> None:
        """Take over a tokenizer.

        Args:
            plain: that of the model.
            reading: what its folder says.
            fill_id: id of the token with which queries are filled up; None: it has none.

        Raises:
            ConfigError: queries are to be filled up, and there is nothing to do it with.
        """
        fast = _with_markers(plain.fast, reading.markers)
        super().__init__(fast, min(reading.document_tokens or plain.max_tokens, plain.max_tokens), plain.fallback_id)
        if reading.expand_to and fill_id is None:
            raise ConfigError("it fills up queries, and its tokenizer has no mask and no end to do it with")
        most = min(reading.query_tokens or plain.max_tokens, plain.max_tokens)
        self._queries = FastTokenizer(fast, most, plain.fallback_id)
        self._reading, self._fill_id = reading, fill_id
        ids = (self.fast.token_to_id(word) for word in reading.skipped)
        self.skipped = np.array(sorted({one for one in ids if one is not None}), np.int32)
        self.skips_in_queries = reading.skips_in_queries

    def encode(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """See `TextTokenizer.encode`.

        Raises:
            InvalidRequest: the start of a text is to be cut off, where its marker stands.
        """
        return super().encode(_prepend(self._reading.document, texts, truncate), truncate)

    def encode_queries(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """Do the same for queries, filled up where the model wants that.

        Raises:
            InvalidRequest: as `encode`.
        """
        rows = self._queries.encode(_prepend(self._reading.query, texts, truncate), truncate)
        return [replace(row, tokens=self._fill(row.tokens)) for row in rows]

    def _fill(self, row: Tokens) -> Tokens:
        missing = max(0, self._reading.expand_to - len(row))
        if not missing:
            return replace(row, is_query=True)
        ids = np.concatenate([row.ids, np.full(missing, self._fill_id, np.int32)])
        return replace(row, ids=ids, is_query=True, unseen=0 if self._reading.attends else missing)


def _prepend(prompt: str, texts: Sequence[str], truncate: Truncate) -> Sequence[str]:
    if not prompt:
        return texts
    if truncate == "start":
        message = "truncate: this model puts a marker before texts, so only their end is cut"
        raise InvalidRequest(message, param="truncate")
    return [prompt + text for text in texts]


def _with_markers(fast: Any, markers: tuple[str, ...]) -> Any:
    """Return a copy that reads each marker as one token, if it has it as one: so the model was trained."""
    from tokenizers import AddedToken  # noqa: PLC0415 - importing this module must not cost it

    copy = type(fast).from_str(fast.to_str())
    known = copy.get_vocab()
    for marker in markers:
        for token in (marker, *marker.split()[:1]):
            if token in known:
                if copy.encode(token, add_special_tokens=False).tokens != [token]:
                    copy.add_special_tokens([AddedToken(token, normalized=False, special=True)])
                break
    return copy
