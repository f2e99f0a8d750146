"""What the suites for GPUs share: the shapes, their texts and tokens, the ceiling A and the share of it.

Owns the choice between a GPU and, in a quick run without one, tiny shapes on the CPU, which only shows that the suites
run. A is the rate of large bf16 products on this card, over the operations of a model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.bench import Bench
from benchmarks.devices.gemm import decoder_flops, encoder_flops
from benchmarks.stacks.cards import shape_cards
from benchmarks.stacks.checkpoints import GPU_SHAPES, TINY_SHAPES, Shape, make
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.processes import BUILD

__all__ = ["LENGTHS", "MAX_TOKENS", "Item", "Subject", "ceiling", "share", "subjects"]

MAX_TOKENS = 512
LENGTHS = (86, 512)

Item = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Subject:
    """A shape with its checkpoint and what it reads.

    Attributes:
        shape: the architecture.
        folder: its checkpoint.
        items: texts, or pairs, by their mean length in tokens: short passages, and texts that are cut at 512.
        tokens: real tokens of each item, likewise.
    """

    shape: Shape
    folder: Path
    items: dict[int, list[Item]]
    tokens: dict[int, NDArray[np.int64]]

    def engine_arguments(self, bench: Bench) -> dict[str, Any]:
        """Return what starts our engine for it."""
        on_gpu = bench.device == "cuda"
        return {
            "model": self.shape.name,
            "data_dir": str((BUILD / "data" / "bare").absolute()),
            "catalog_file": str(shape_cards({self.shape.name: self.folder}, [self.shape])),
            "settings": {"engine_max_tokens": 4_000_000, "packed": "auto" if on_gpu else "on", "device": bench.device},
        }


def subjects(bench: Bench, families: Sequence[str] = ()) -> Iterator[Subject]:
    """Yield the shapes one after the other, with as much text as a second or two of a card takes."""
    for shape in GPU_SHAPES if bench.device == "cuda" else TINY_SHAPES:
        if families and shape.family not in families:
            continue
        folder = bench.try_start(f"checkpoint {shape.name}", partial(make, shape))
        if folder is not None:
            yield _subject(bench, shape, folder)


@contextmanager
def ceiling(bench: Bench) -> Iterator[Hosted]:
    """Hold the process that measures A; `share` asks it."""
    with Hosted("gemm-gpu", "benchmarks.devices.gemm:Gemm", {"device": bench.device}, bench.cores.server) as gemm:
        yield gemm


def share(gemm: Hosted, subject: Subject, tokens: NDArray[np.int64], seconds: float) -> float:
    """Return the percent of A at which texts of these lengths were computed in so many seconds, A measured now."""
    path = BUILD / "gemm.npy"
    gemm.run([0], save=path)
    count = decoder_flops if subject.shape.family == "decoder" else encoder_flops
    return 100 * count(subject.folder, tokens) / seconds / float(np.load(path).max())


def _subject(bench: Bench, shape: Shape, folder: Path) -> Subject:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    passages = list(bench.corpus.passages[: bench.plan.shape_passages])
    texts = {86: passages, 512: _long_texts(tokenizer, passages, max(4, len(passages) // 4))}
    items: dict[int, list[Item]] = {86: list(texts[86]), 512: list(texts[512])}
    if shape.family == "cross-encoder":
        queries = bench.corpus.queries
        items = {
            length: [(queries[at % len(queries)], text) for at, text in enumerate(texts[length])] for length in texts
        }
    tokens = {length: _count(tokenizer, items[length]) for length in items}
    return Subject(shape, folder, items, tokens)


def _long_texts(tokenizer: Any, passages: Sequence[str], count: int) -> list[str]:
    """Return texts of more than 512 tokens, all different."""
    lengths = [len(one.ids) for one in tokenizer.encode_batch(list(passages))]
    texts, at = list[str](), 0
    while len(texts) < count:
        parts, tokens = [f"{len(texts)}"], 0
        while tokens <= MAX_TOKENS:
            parts.append(passages[at % len(passages)])
            tokens += lengths[at % len(passages)] - 2
            at += 1
        texts.append(" ".join(parts))
    return texts


def _count(tokenizer: Any, items: Sequence[Item]) -> NDArray[np.int64]:
    return np.array([min(MAX_TOKENS, len(one.ids)) for one in tokenizer.encode_batch(list(items))], np.int64)
