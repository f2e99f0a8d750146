"""Token ids to text: clients of OpenAI's API send cl100k ids for models that they do not know.

Owns the decoding table. It is `cl100k_base.tiktoken` (OpenAI, MIT licence, sha256 of the original
223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7) packed as one byte of length per token followed by
their bytes, zstd. Decoding is a look-up, so no tokenizer library is needed and nothing is downloaded.
"""

import functools
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from config.catalog import ModelCard
from tasks.errors import InvalidRequest

__all__ = ["decode_cl100k", "read_texts"]

_TOKENS = 100_256
_SPECIAL = {
    100_257: b"<|endoftext|>",
    100_258: b"<|fim_prefix|>",
    100_259: b"<|fim_middle|>",
    100_260: b"<|fim_suffix|>",
    100_276: b"<|endofprompt|>",
}


class _Table(NamedTuple):
    """Token i is `data[starts[i]:starts[i + 1]]`."""

    starts: NDArray[np.int32]
    data: bytes


def read_texts(value: str | Sequence[str | list[int]], card: ModelCard) -> Iterator[str]:
    """Yield the texts of an `input` field, token ids decoded.

    Raises:
        InvalidRequest: an id is out of range, or this model takes no token ids.
    """
    for position, item in enumerate([value] if isinstance(value, str) else value):
        yield item if isinstance(item, str) else _read_ids(item, card, position)


def decode_cl100k(ids: Sequence[int]) -> str:
    """Return the text of cl100k ids; bytes that are no UTF-8 become replacement characters, as tiktoken does it.

    Raises:
        KeyError: an id is out of range.
    """
    table = _load_table()
    return b"".join(_token_bytes(table, token) for token in ids).decode("utf-8", "replace")


def _read_ids(ids: list[int], card: ModelCard, position: int) -> str:
    if card.token_ids != "cl100k":
        message = (
            f"{card.name} takes texts, not token ids; with langchain-openai set check_embedding_ctx_length=False "
            "to send texts"
        )
        raise InvalidRequest(message, param="input")
    try:
        return decode_cl100k(ids)
    except KeyError as error:
        message = f"item {position}: token id {error.args[0]} is not in the cl100k vocabulary"
        raise InvalidRequest(message, param="input") from None


def _token_bytes(table: _Table, token: int) -> bytes:
    if 0 <= token < _TOKENS:
        return table.data[table.starts[token] : table.starts[token + 1]]
    return _SPECIAL[token]


@functools.cache
def _load_table() -> _Table:
    packed = (resources.files("app") / "data" / "cl100k_base.zst").read_bytes()
    raw = zstandard.ZstdDecompressor().decompress(packed)
    starts = np.zeros(_TOKENS + 1, np.int32)
    np.cumsum(np.frombuffer(raw, np.uint8, _TOKENS), out=starts[1:])
    return _Table(starts, raw[_TOKENS:])
