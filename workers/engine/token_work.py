"""Work that a tokenizer does alone: texts to tokens, and tokens to text. Nothing of it is queued for the device.

Owns the outcomes of such work. Tokens are those of the model; no instruction is put before texts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.engine import ItemError, Outcomes, Work
from tasks.errors import InvalidRequest
from tasks.vectors import Parts, Ragged
from workers.engine.pending import PendingWork
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import TextTokenizer

__all__ = ["admit_tokens"]


def admit_tokens(work: Work, model: LoadedModel) -> PendingWork:
    """Do the work in the calling thread, and return a request without rows, which ends with its outcomes.

    Raises:
        InvalidRequest: there is no such token.
    """
    tokenizer = model.tokenizer
    do = _tokenize if work.operation == "tokenize" else _detokenize
    outcomes = do(work.texts, tokenizer, model.fingerprint)

    def finish(_: NDArray[np.float32], __: Mapping[int, ItemError]) -> Outcomes:
        return outcomes

    return PendingWork(model, work.service, work.deadline_s, finish)


def _tokenize(texts: Sequence[str], tokenizer: TextTokenizer, fingerprint: str) -> Outcomes:
    found = [tokenizer.spell(text) for text in texts]
    columns = [
        tuple(np.array([getattr(one, name) for one in tokens], np.int32) for name in ("id", "start", "end"))
        for tokens in found
    ]
    words = [_points("\0".join(one.word for one in tokens)) for tokens in found]
    return _outcomes(fingerprint, columns, words)


def _detokenize(texts: Sequence[str], tokenizer: TextTokenizer, fingerprint: str) -> Outcomes:
    try:
        ids = [[int(one) for one in text.split()] for text in texts]
    except ValueError as error:
        raise InvalidRequest("tokens: must be whole numbers", param="tokens") from error
    return _outcomes(fingerprint, [None] * len(texts), [_points(tokenizer.join(row)) for row in ids])


def _outcomes(fingerprint: str, tokens: Sequence[Parts | None], texts: Sequence[Parts]) -> Outcomes:
    count = len(texts)
    extras = {"tokens": Ragged.of("tokens", tokens), "text": Ragged.of("text", texts)}
    # No model read anything.
    read, cut = np.zeros(count, np.int32), np.zeros(count, np.bool_)
    return Outcomes(np.zeros((count, 0), np.float32), read, cut, extras=extras, fingerprint=fingerprint)  # type: ignore[arg-type]  # both are kinds


def _points(text: str) -> Parts:
    return (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<i4"),)
