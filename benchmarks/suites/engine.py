"""Suite `engine`: the same passages through our engine, our whole job, and the libraries, on the same cores.

Owns who takes part and the correctness of what they return.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.corpus import count_tokens, lines, model_folder
from benchmarks.devices.gemm import encoder_flops
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.ours import MODEL, Ours
from benchmarks.stacks.processes import BUILD

__all__ = ["ENGINE", "JOB", "SUITE", "run"]

SUITE = "engine"
ENGINE, ENGINE_FP32 = "Twolane engine", "Twolane engine, fp32"
JOB = "Twolane job, end to end"
REFERENCE = "sentence-transformers fp32"
GEMM = "torch.matmul bf16"

_FLAG = "benchmarks.peers.flagembedding:Embedder"
_SENTENCE = "benchmarks.peers.sentence_transformers:Embedder"


def run(bench: Bench) -> None:
    """Measure everything `rounds` times, taking turns, then compare the vectors."""
    with ExitStack() as stack:
        contenders = [stack.enter_context(one) for one in _start(bench)]
        ours = stack.enter_context(bench.try_start("the stack", lambda: Ours("stack-engine", bench.cores.server)))
        gemm = stack.enter_context(
            Hosted("gemm", "benchmarks.devices.gemm:Gemm", {"device": bench.device}, bench.cores.server)
        )
        for number in range(bench.plan.rounds):
            bench.say(f"  round {number + 1} of {bench.plan.rounds}")
            _measure_gemm(bench, gemm)
            for contender in contenders:
                _measure(bench, contender)
            _measure_long(bench, contenders[0], ours)
    _measure_share(bench)
    _compare_vectors(bench, contenders)


def _start(bench: Bench) -> list[Hosted]:
    """Start all libraries; each holds its model in a process of its own and sleeps between its turns."""
    ours = {"model": MODEL, "data_dir": str((BUILD / "data" / "bare").absolute())}
    peer = {"folder": str(model_folder()), "device": bench.device}
    flag = {**peer, "pooling": "mean"}
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        (ENGINE, "benchmarks.devices.bare_engine:BareEngine", ours),
        (ENGINE_FP32, "benchmarks.devices.bare_engine:Fp32Engine", ours),
        (REFERENCE, _SENTENCE, peer),
    ]
    if bench.with_peers:
        wanted += [
            ("sentence-transformers bf16", _SENTENCE, {**peer, "dtype": "bfloat16"}),
            ("FlagEmbedding, batch 32", _FLAG, {**flag, "batch_size": 32}),
            ("FlagEmbedding, default (256)", _FLAG, flag),
        ]
    if bench.with_peers and bench.device == "cpu":
        bf16 = {**flag, "batch_size": 32, "device": "cpu:0"}
        wanted.append(("FlagEmbedding, batch 32, cpu:0 bf16", _FLAG, bf16))
    started = [
        bench.try_start(name, partial(Hosted, name, target, kwargs, bench.cores.server))
        for name, target, kwargs in wanted
    ]
    return [one for one in started if one is not None]


def _measure(bench: Bench, contender: Hosted) -> None:
    tokens = count_tokens(bench.passages).sum()
    contender.run(bench.passages[:64])  # its pages and code are warm, whoever ran before
    seconds = contender.run(bench.passages, save=_vectors(contender.name)).seconds
    place = (SUITE, contender.name)
    bench.sheet.add(place, "passages", tokens / seconds, "tokens/s", "higher")
    bench.sheet.add(place, "passages in texts", len(bench.passages) / seconds, "texts/s", "higher")
    bench.sheet.add(place, "resident memory", contender.rss_mb(), "MB", "lower")
    bench.say(f"    {contender.name}: {tokens / seconds:,.0f} tokens/s")


def _measure_long(bench: Bench, engine: Hosted, ours: Ours | None) -> None:
    """Compare the job with the bare engine over a corpus that is long enough to forget its start."""
    texts = bench.corpus.passages[: bench.plan.job_passages]
    tokens = count_tokens(texts).sum()
    seconds = engine.run(texts).seconds
    note = f"{len(texts)} passages"
    bench.sheet.add((SUITE, ENGINE), "long corpus", tokens / seconds, "tokens/s", "higher", note)
    if ours is None:
        return
    job = ours.run_job(lines(texts))
    np.save(_vectors(JOB), job.vectors[: len(bench.passages)])
    bench.sheet.add((SUITE, JOB), "long corpus", tokens / job.fetched_s, "tokens/s", "higher", note)
    bench.sheet.add((SUITE, JOB), "long corpus: submit to 202", job.accepted_s, "s")
    bench.sheet.add((SUITE, JOB), "long corpus: end to last byte", job.fetched_s - job.ended_s, "s")
    bench.say(f"    engine {tokens / seconds:,.0f}, job {tokens / job.fetched_s:,.0f} tokens/s over {note}")


def _measure_gemm(bench: Bench, gemm: Hosted) -> None:
    path = BUILD / "gemm.npy"
    gemm.run([0], save=path)
    # The best of several sizes: the strictest yardstick for the share that we reach.
    bench.sheet.add((SUITE, GEMM), "rate", float(np.load(path).max()) / 1e9, "GFLOP/s", note="best size of 512 to 4096")


def _measure_share(bench: Bench) -> None:
    """Turn tokens per second into operations per second, round by round, and those into a share of the ceiling."""
    tokens = count_tokens(bench.passages)
    flops_per_token = encoder_flops(model_folder(), tokens) / tokens.sum()
    ceiling = bench.sheet.find(SUITE, GEMM, "rate")
    for row in list(bench.sheet.rows(SUITE)):
        if row.metric == "passages" and ceiling is not None:
            for rate, peak in zip(row.samples, ceiling.samples, strict=True):
                share = rate * flops_per_token / (peak * 1e9)
                bench.sheet.add((SUITE, row.subject), "share of the GEMM rate", share * 100, "%", "higher")


def _compare_vectors(bench: Bench, contenders: list[Hosted]) -> None:
    """Write down the worst cosine to the float32 reference over all passages."""
    reference = _unit(np.load(_vectors(REFERENCE)))
    for name in [contender.name for contender in contenders] + [JOB]:
        if name != REFERENCE and _vectors(name).exists():
            cosines = (_unit(np.load(_vectors(name))) * reference).sum(axis=1)
            note = f"worst of {len(cosines)} passages"
            bench.sheet.add((SUITE, name), "cosine to fp32", float(cosines.min()), "cosine", note=note)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(norms == 0, 1, norms)


def _vectors(name: str) -> Path:
    return BUILD / f"{name.replace(' ', '-').replace(':', '')}.npy"
