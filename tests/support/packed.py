"""What the tests of the packed backend share: loaded tiny models, varied texts, and a recorder without a GPU."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.catalog import ModelCard
from config.settings import Settings
from tests.support.checkpoints import WORDS
from workers.models.backends.base import Backend
from workers.models.folders.recognise import recognise
from workers.models.loaded import LoadedModel
from workers.models.registry import load_models
from workers.models.tokenizing.tokenizer import Tokens
from workers.models.weights import Weights, load_weights

__all__ = ["Repeat", "load", "make_rows", "run", "varied_texts", "weights_of"]

_SCRIPTS = ("深夜的灯塔", "これは日本語", "Быстрая лиса", "العربية نص", "Ünïcödé ẞtraße", "🙂👩‍👩‍👧‍👦", "a", "x y")


class Repeat:
    """A recorder for devices without graphs: a recorded pass is computed again."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, compute: Callable[[], None]) -> Callable[[], object]:
        """See `Recorder.record`."""
        self.recorded += 1
        compute()
        return compute

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """See `Recorder.on_stream`."""
        return contextlib.nullcontext()


def load(card: ModelCard, backend: str, dtype: str = "float32", device: str = "cpu") -> LoadedModel:
    """Load a model by the registry."""
    settings = Settings(_env_file=None, device=device, threads=1, dtype=dtype, data_dir=Path("unused"))
    return load_models([card.model_copy(update={"backend": backend})], settings)[card.name]


def varied_texts(count: int, special: tuple[str, ...] = ("<pad>", "[SEP]", "[PAD]")) -> list[str]:
    """Return texts of 0 to 200 words of the tiny vocabularies, with unknown words, scripts and special tokens."""
    draw = random.Random(7)
    lengths = [0, 1, 1, 2, 3, 5, 8, 13, 40, 90, 125, 126, 127, 200]
    words = [*WORDS, *special, *_SCRIPTS]
    made = [" ".join(draw.choices(words, k=draw.choice(lengths))) for _ in range(count - len(_SCRIPTS) - 1)]
    return ["", *_SCRIPTS, *made]


def make_rows(model: LoadedModel, texts: list[str]) -> list[Tokens]:
    """Return rows of the texts, of pairs for a cross-encoder."""
    if model.card.rerank_by != "cross-encoder":
        return [encoded.tokens for encoded in model.tokenizer.encode(texts, "end")]
    queries = [f"{WORDS[at % 9]} {WORDS[at % 7]}" for at in range(len(texts))]
    return [encoded.tokens for encoded in model.tokenizer.encode_pairs(queries, texts, "end")]


def run(backend: Backend, rows: list[Tokens], size: int = 16) -> NDArray[np.float32]:
    """Compute rows of similar length together, and return the values in the order of the rows."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    starts = range(0, len(rows), size)
    parts = [backend.run([rows[at] for at in order[start : start + size]]) for start in starts]
    return np.asarray(np.concatenate(parts)[np.argsort(order)])


def weights_of(card: ModelCard, dtype: str = "float32") -> Weights:
    """Load the weights alone."""
    return load_weights(recognise(card, Path(card.source.removeprefix("path:"))), dtype)
