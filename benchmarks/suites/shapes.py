"""Suite `shapes`: larger architectures with random weights, our engine beside the libraries, one shape after the other.

Owns who takes part for each family. Tokens are counted by the checkpoint's own tokenizer.
"""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.bench import Bench
from benchmarks.devices.gemm import encoder_flops
from benchmarks.stacks.cards import shape_cards
from benchmarks.stacks.checkpoints import SHAPES, Shape, make
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.processes import BUILD

__all__ = ["SUITE", "run"]

SUITE = "shapes"
_MAX_TOKENS = 512
_LARGE_PARAMETERS = 200e6
_SEED = 1

Item = str | tuple[str, str]


def run(bench: Bench) -> None:
    """Measure shape by shape, so that no more than one family of processes is in memory."""
    for shape in SHAPES:
        folder = bench.try_start(f"checkpoint {shape.name}", partial(make, shape))
        if folder is not None:
            _measure_shape(bench, shape, folder)


def _measure_shape(bench: Bench, shape: Shape, folder: Path) -> None:
    items = _items(bench, shape)
    tokens = _count_tokens(folder, items)
    with ExitStack() as stack:
        gemm = stack.enter_context(
            Hosted("gemm-shapes", "benchmarks.devices.gemm:Gemm", {"device": bench.device}, bench.cores.server)
        )
        contenders = [stack.enter_context(one) for one in _start(bench, shape, folder)]
        for number in range(bench.plan.rounds):
            bench.say(f"  {shape.name}, round {number + 1} of {bench.plan.rounds}")
            gemm.run([0], save=BUILD / "gemm.npy")
            ceiling = float(np.load(BUILD / "gemm.npy").max())
            for contender in contenders:
                contender.run(items[:2])
                seconds = contender.run(items, save=BUILD / f"{contender.name}.npy").seconds
                subject, unit = contender.name.removesuffix(f" {shape.name}"), "tokens/s"
                bench.sheet.add(
                    (SUITE, subject), shape.name, tokens.sum() / seconds, unit, "higher", f"{len(items)} items"
                )
                share = encoder_flops(folder, tokens) / seconds / ceiling
                bench.sheet.add((SUITE, subject), f"{shape.name}, share of the GEMM rate", 100 * share, "%", "higher")
                bench.say(f"    {subject}: {tokens.sum() / seconds:,.0f} tokens/s")
    _compare(bench, shape, contenders)


def _start(bench: Bench, shape: Shape, folder: Path) -> list[Hosted]:
    cards = str(shape_cards({shape.name: folder}))
    ours = {"model": shape.name, "data_dir": str((BUILD / "data" / "bare").absolute()), "catalog_file": cards}
    flag = {"encoder": "Embedder", "bge-m3": "M3Embedder", "cross-encoder": "Reranker"}[shape.family]
    sentence = "Reranker" if shape.family == "cross-encoder" else "Embedder"
    options = {"folder": str(folder), "max_tokens": _MAX_TOKENS, "device": bench.device}
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("Twolane engine", "benchmarks.devices.bare_engine:BareEngine", ours),
        ("sentence-transformers fp32", f"benchmarks.peers.sentence_transformers:{sentence}", options),
    ]
    if bench.with_peers:
        flag_options = {**options, "batch_size": 32}
        wanted.append(("FlagEmbedding, batch 32", f"benchmarks.peers.flagembedding:{flag}", flag_options))
    started = [
        bench.try_start(
            f"{name}, {shape.name}", partial(Hosted, f"{name} {shape.name}", target, kwargs, bench.cores.server)
        )
        for name, target, kwargs in wanted
    ]
    return [one for one in started if one is not None]


def _items(bench: Bench, shape: Shape) -> list[Item]:
    """Return passages, or for a reranker pairs of a query and a passage; fewer for the large shape."""
    parameters = shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.inner)
    count = bench.plan.shape_passages // (4 if parameters > _LARGE_PARAMETERS else 1)
    passages = bench.corpus.passages[:count]
    if shape.family != "cross-encoder":
        return list(passages)
    queries = random.Random(_SEED).choices(bench.corpus.queries, k=count)
    return list(zip(queries, passages, strict=True))


def _count_tokens(folder: Path, items: Sequence[Item]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(list(items))
    return np.array([min(_MAX_TOKENS, len(one.ids)) for one in encoded], dtype=np.int64)


def _compare(bench: Bench, shape: Shape, contenders: Sequence[Hosted]) -> None:
    """Compare with sentence-transformers in fp32: the worst cosine, or for scores the largest difference."""
    values = {one.name: np.load(BUILD / f"{one.name}.npy").astype(np.float64) for one in contenders}
    reference = values.get(f"sentence-transformers fp32 {shape.name}")
    ours = values.get(f"Twolane engine {shape.name}")
    if reference is None or ours is None:
        return
    place = (SUITE, "Twolane engine")
    if reference.ndim == 1:
        off = float(np.abs(ours - reference).max())
        bench.sheet.add(place, f"{shape.name}, largest difference of a score to fp32", off, "of 1")
        return
    cosines = (ours * reference).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(reference, axis=1)
    bench.sheet.add(place, f"{shape.name}, cosine to fp32", float(cosines.min()), "cosine")
