"""Suite `gpu-peers`: FlagEmbedding and sentence-transformers on the same card and texts, at their best batch size.

Owns the batch sizes that are tried; ours is measured between them, so that one run holds both sides of a ratio.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.bench import Bench
from benchmarks.devices.gpu import LENGTHS, MAX_TOKENS, Subject, subjects
from benchmarks.stacks.host import Hosted

__all__ = ["SUITE", "run"]

SUITE = "gpu-peers"
_OURS = "Twolane engine"
_BATCHES = (64, 128, 256, 512)
_FLAG = {"encoder": "Embedder", "bge-m3": "M3Embedder", "cross-encoder": "Reranker", "decoder": "DecoderEmbedder"}


def run(bench: Bench) -> None:
    """Measure shape by shape; each peer is loaded once for each batch size."""
    for subject in subjects(bench):
        best: dict[tuple[str, int], tuple[float, str]] = {}
        for name, target, arguments in _contenders(bench, subject):
            start = partial(Hosted, f"gpu-peer-{subject.shape.name}", target, arguments, bench.cores.server)
            contender = bench.try_start(f"{name}, {subject.shape.name}", start)
            if contender is None:
                continue
            with contender:
                for length in LENGTHS:
                    rate = _rate(bench, subject, contender, length)
                    key = (name.partition(", batch ")[0], length)
                    best[key] = max(best.get(key, (0.0, "")), (rate, name.rpartition(", ")[2]))
                    bench.say(f"    {name}, {subject.shape.name} at {length}: {rate:,.0f} tokens/s")
        for (name, length), (rate, how) in best.items():
            metric = f"{subject.shape.name} at {length}"
            bench.sheet.add((SUITE, name), metric, rate, "tokens/s", "higher", "" if name == _OURS else how)


def _contenders(bench: Bench, subject: Subject) -> Iterator[tuple[str, str, dict[str, Any]]]:
    family = subject.shape.family
    yield _OURS, "benchmarks.devices.bare_engine:BareEngine", subject.engine_arguments(bench)
    if not bench.with_peers:
        return
    half = ("bfloat16" if family == "decoder" else "float16") if bench.device == "cuda" else "float32"
    common = {"folder": str(subject.folder), "max_tokens": MAX_TOKENS, "device": bench.device}
    for size in _BATCHES[:1] if bench.plan.quick else _BATCHES:
        options = {**common, "batch_size": size}
        sentence = "Reranker" if family == "cross-encoder" else "Embedder"
        yield f"FlagEmbedding, batch {size}", f"benchmarks.peers.flagembedding:{_FLAG[family]}", options
        target = f"benchmarks.peers.sentence_transformers:{sentence}"
        yield f"sentence-transformers, batch {size}", target, {**options, "dtype": half}


def _rate(bench: Bench, subject: Subject, contender: Hosted, length: int) -> float:
    items, tokens = subject.items[length], int(subject.tokens[length].sum())
    contender.run(items[: max(2, len(items) // 4)])
    return tokens / min(contender.run(items).seconds for _ in range(bench.plan.rounds))
