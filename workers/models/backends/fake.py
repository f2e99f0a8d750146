"""A backend without weights: vectors from a hash of the text, and faults on demand.

Ships with the product, for tests and for trying an installation. The knobs of its card (`ModelCard.knobs`):

    overlaps                    1: the device computes in a thread of its own, so that passes can be started ahead
    latency_ms, ms_per_token    how long a pass takes: a constant, and a part per padded token
    oom_above_tokens            a batch of more padded tokens raises OutOfMemory
    fail_on                     a batch with a text that contains this raises an error
    exit_on                     likewise, the process ends with status 3
    segfault_on                 likewise, the process ends by SIGSEGV
    hang_on                     likewise, the pass never ends
    nan_on                      the vector of such a text is NaN, in every precision
    nan_half_on                 the vector of such a text is NaN, but not in float32
"""

import hashlib
import os
import re
import signal
import time
import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from config.catalog import ModelCard
from tasks.errors import OutOfMemory
from workers.models.backends.base import Backend, Heads, Pipeline, Values
from workers.models.tokenizing.tokenizer import Encoded, Spelled, Tokens, Truncate

__all__ = ["FakeBackend", "FakeTokenizer"]

_MARKERS = ("fail_on", "exit_on", "segfault_on", "hang_on", "nan_on", "nan_half_on")
# A row begins with 1, or with the id of its marker, and ends with 2; so a marker survives truncation.
_BEGIN, _END, _FIRST_MARKER = 1, 2, 10


class FakeTokenizer:
    """One token per word and two special ones. See `workers.models.tokenizing.tokenizer.TextTokenizer`."""

    def __init__(self, card: ModelCard) -> None:
        self.max_tokens = card.max_tokens
        self._markers = [(str(card.knobs[name]), _marker_id(name)) for name in _MARKERS if name in card.knobs]

    def encode(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """See `TextTokenizer.encode`."""
        return [self._encode("", text, truncate) for text in texts]

    def encode_pairs(self, queries: Sequence[str], texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """See `TextTokenizer.encode_pairs`."""
        return [self._encode(query, text, truncate) for query, text in zip(queries, texts, strict=True)]

    def locate(self, texts: Sequence[str]) -> list[NDArray[np.intp]]:
        """See `TextTokenizer.locate`."""
        words = [[word.span() for word in re.finditer(r"\S+", text)] for text in texts]
        return [np.array(spans, np.intp).reshape(-1, 2) for spans in words]

    def spell(self, text: str) -> list[Spelled]:
        """See `TextTokenizer.spell`."""
        words = text.split()
        ((*ids,), (spans,)) = _word_ids(text), self.locate([text])
        own = [Spelled(one, word, *span) for one, word, span in zip(ids, words, spans.tolist(), strict=True)]
        return [Spelled(_BEGIN, "<begin>"), *own, Spelled(_END, "<end>")]

    def join(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer.join`. A hash cannot be turned back."""
        return " ".join(f"#{one}" for one in ids)

    def _encode(self, query: str, text: str, truncate: Truncate) -> Encoded:
        head = _word_ids(query)[: self.max_tokens // 2]
        words = _word_ids(text)
        room = self.max_tokens - 2 - len(head)
        kept = words[-room:] if truncate == "start" else words[:room]
        begin = next((code for marker, code in self._markers if marker in text or marker in query), _BEGIN)
        ids = np.array([begin, *head, *kept, _END], np.int32)
        asked = len(head) + len(words) + 2
        return Encoded(Tokens(ids, second_at=1 + len(head) if query else 0), len(kept) < len(words), asked)


class FakeBackend:
    """See `workers.models.backends.base.Backend`."""

    kind = "fake"
    parallel = 1
    counts_padding = True
    preempts = False
    latency_stream: Backend | None = None
    heads: Heads | None = None
    device = "cpu"
    dtype = "float32"

    def __init__(self, card: ModelCard) -> None:
        self.dimension = None if card.rerank_by == "cross-encoder" else card.dimension
        knobs = card.knobs
        self._latency_s = float(knobs.get("latency_ms", 0)) / 1000
        self._token_s = float(knobs.get("ms_per_token", 0)) / 1000
        self._most_tokens = float(knobs.get("oom_above_tokens", "inf"))
        self._thread = ThreadPoolExecutor(1, "fake-device")
        self.pipeline: Pipeline | None = self if knobs.get("overlaps") else None

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        values = self._compute(rows)
        values[_begins(rows) == _marker_id("nan_half_on")] = np.nan
        return values

    def start(self, rows: Sequence[Tokens]) -> Values:
        """See `Pipeline.start`."""
        return self._thread.submit(self.run, rows).result

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`."""
        return self._compute(rows)

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""

    def _compute(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        padded = len(rows) * max(map(len, rows))
        if padded > self._most_tokens:
            raise OutOfMemory(f"{padded} tokens are more than this fake device holds")
        time.sleep(self._latency_s + self._token_s * padded)
        begins = _begins(rows)
        self._break(set(begins.tolist()))
        values = _vectors(rows, self.dimension or 1)
        if self.dimension is None:
            values = np.asarray((values[:, 0] + 1) / 2, np.float32)
        values[begins == _marker_id("nan_on")] = np.nan
        return values

    @staticmethod
    def _break(begins: AbstractSet[int]) -> None:
        if _marker_id("exit_on") in begins:
            os._exit(3)
        if _marker_id("segfault_on") in begins:
            os.kill(os.getpid(), signal.SIGSEGV)
        while _marker_id("hang_on") in begins:
            time.sleep(1)
        if _marker_id("fail_on") in begins:
            raise RuntimeError("the fake device refuses this text")


def _marker_id(name: str) -> int:
    return _FIRST_MARKER + _MARKERS.index(name)


def _begins(rows: Sequence[Tokens]) -> NDArray[np.int32]:
    """Return the first id of each row."""
    return np.fromiter((row.ids[0] for row in rows), np.int32, len(rows))


def _word_ids(text: str) -> list[int]:
    """Return an id per word, above all special ones, the same in every process."""
    return [zlib.crc32(word.encode("utf-8", "surrogatepass")) % (2**31 - 1000) + 100 for word in text.split()]


def _vectors(rows: Sequence[Tokens], dimension: int) -> NDArray[np.float32]:
    """Return unit vectors, or for one dimension numbers in [-1, 1], each drawn from a hash of its row's ids."""
    raw = b"".join([hashlib.shake_256(row.ids.tobytes()).digest(2 * dimension) for row in rows])
    values = np.frombuffer(raw, "<i2").reshape(len(rows), dimension).astype(np.float32) / np.float32(2**15)
    return values if dimension == 1 else values / np.linalg.norm(values, axis=1, keepdims=True)
