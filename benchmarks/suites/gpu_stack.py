"""Suite `gpu-stack`: the whole product on one card: a large job, small calls, both, and a worker that is killed.

Owns the conditions. All that was submitted must come back exact, also after the kill, or the suite fails. Shapes and
texts are `benchmarks.devices.gpu`'s; the stack has the measured cores, the load generator the others.
"""

import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.devices.gpu import Subject, ceiling, share, subjects
from benchmarks.load.loadgen import Traffic
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.ours import Ours
from benchmarks.suites.lane import saturated

__all__ = ["SUITE", "misplaced", "run"]

SUITE = "gpu-stack"
_LENGTH = 86
_JOB_TEXTS = 200_000
_CLIENTS = (1, 64)
_CALLS_PER_S = 20.0
_PACE_S = 15.0
_CORES_PER_WEB = 4
_LOOK_S = 0.05
# Uploading and starting take from the job that has to outlast the calls beside it.
_SPARE = 2.0
# Some chunks, however slow the device is: a rate is read between two of them.
_FEWEST_TEXTS = 6_000


def run(bench: Bench) -> None:
    """Measure the embedders, one stack after the other."""
    with ceiling(bench) as gemm:
        for subject in subjects(bench, ("encoder", "bge-m3")):
            ours = bench.try_start(f"the stack, {subject.shape.name}", partial(_start, bench, subject))
            if ours is not None:
                with ours:
                    for _ in range(bench.plan.rounds):
                        _measure(bench, gemm, subject, ours)


def _start(bench: Bench, subject: Subject) -> Ours:
    engine = subject.engine_arguments(bench)
    env = {
        "TWOLANE_CATALOG_FILE": engine["catalog_file"],
        "TWOLANE_DEVICE": "cuda:0" if bench.device == "cuda" else "cpu",
        "TWOLANE_PACKED": engine["settings"]["packed"],
        "TWOLANE_THREADS": "0",
        "TWOLANE_WEB_WORKERS": str(max(1, len(bench.cores.server) // _CORES_PER_WEB)),
    }
    return Ours(f"stack-{subject.shape.name}", bench.cores.server, env, model=subject.shape.name)


def _measure(bench: Bench, gemm: Hosted, subject: Subject, ours: Ours) -> None:
    for clients in _CLIENTS:
        held = bench.load.hold(ours.target([[query] for query in bench.corpus.queries]), clients, bench.plan.hold_s)
        _write(bench, subject, f"{clients} clients", held)
        bench.sheet.add(_place(subject), f"{clients} clients", held.rate, "requests/s", "higher")
    vectors, rate = _measure_job(bench, gemm, subject, ours)
    _measure_lanes(bench, subject, ours, rate)
    _measure_kill(bench, subject, ours, vectors)


def _measure_job(bench: Bench, gemm: Hosted, subject: Subject, ours: Ours) -> tuple[NDArray[np.float32], float]:
    """Return the vectors of the whole job, and its texts per second."""
    count = _count(bench)
    job = ours.run_job(lines(repeat(_texts(subject), count)))
    # The running numbers before repeated texts, a token or two each, are not counted.
    tokens = np.resize(subject.tokens[_LENGTH], count)
    percent = share(gemm, subject, tokens, job.fetched_s)
    place, note = _place(subject), f"{count:,} passages, submit to last byte of npy"
    bench.sheet.add(place, "job", count / job.fetched_s, "texts/s", "higher", note)
    bench.sheet.add(place, "job in tokens", float(tokens.sum()) / job.fetched_s, "tokens/s", "higher", note)
    bench.sheet.add(place, "job, share of A", percent, "%", "higher", note)
    bench.sheet.add(place, "job: submit to 202", job.accepted_s, "s", "lower", note)
    bench.sheet.add(place, "job: end to last byte", job.fetched_s - job.ended_s, "s", "lower", note)
    bench.say(f"    {subject.shape.name}, job: {count / job.fetched_s:,.0f} texts/s, {percent:.0f}% of A")
    return job.vectors, count / (job.ended_s - job.accepted_s)


def _measure_lanes(bench: Bench, subject: Subject, ours: Ours, rate: float) -> None:
    """Calls at a fixed rate, on an idle stack and beside a job that lasts longer than they do."""
    seconds = 2.0 if bench.plan.quick else _PACE_S
    target = ours.target([[query] for query in bench.corpus.queries])
    count = max(int(rate * seconds * _SPARE), _FEWEST_TEXTS)
    idle = bench.load.pace(target, _CALLS_PER_S, seconds)
    with saturated(bench, ours, count) as undisturbed:
        time.sleep(seconds)
    with saturated(bench, ours, count) as disturbed:
        busy = bench.load.pace(target, _CALLS_PER_S, seconds)
    _write(bench, subject, f"{_CALLS_PER_S:.0f} calls/s, idle", idle)
    _write(bench, subject, f"{_CALLS_PER_S:.0f} calls/s, beside bulk", busy)
    kept = 100 * disturbed.rate() / undisturbed.rate()
    bench.sheet.add(_place(subject), f"bulk kept at {_CALLS_PER_S:.0f} calls/s", kept, "%", "higher")


def _measure_kill(bench: Bench, subject: Subject, ours: Ours, expected: NDArray[np.float32]) -> None:
    """Kill the worker (SIGKILL) when a third of the job is done; every text must still have its own vector.

    Raises:
        RuntimeError: the job failed, or a text has not the vector that it had in the undisturbed job.
    """
    count = len(expected)
    started_s = time.perf_counter()
    job = ours.submit(lines(repeat(_texts(subject), count)))
    while ours.job(job["id"])["counts"]["completed"] < count // 3:
        time.sleep(_LOOK_S)
    (worker, *_) = ours.workers()
    worker.kill()
    ended = ours.wait(job["id"])
    seconds = time.perf_counter() - started_s
    vectors = ours.vectors(job["id"])
    wrong = misplaced(vectors, expected)
    if ended["counts"]["completed"] != count or wrong:
        raise RuntimeError(f"after a kill {wrong} of {count:,} texts have another vector: {ended['counts']}")
    note = f"{count:,} passages, every one with its own vector"
    bench.sheet.add(_place(subject), "job with its worker killed", count / seconds, "texts/s", "higher", note)
    bench.say(f"    {subject.shape.name}, worker killed: exact, {seconds:.0f} s")


def misplaced(vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> int:
    """Return how many rows are nearer to another row's expected vector than to their own; shapes (n, d).

    The other row is a neighbour: what random weights make of any two texts is much alike, so a bound on the distance
    alone would show nothing. A batch of another size changes a vector in its last digits only.
    """
    if vectors.shape != expected.shape:
        return len(expected)
    own = np.linalg.norm(vectors - expected, axis=1)
    other = np.linalg.norm(vectors - np.roll(expected, 1, axis=0), axis=1)
    return int(np.count_nonzero(~(own < other / 2)))


def _count(bench: Bench) -> int:
    return bench.plan.job_passages if bench.plan.quick else _JOB_TEXTS


def _texts(subject: Subject) -> list[str]:
    return [str(item) for item in subject.items[_LENGTH]]


def _place(subject: Subject) -> tuple[str, str]:
    return SUITE, f"Twolane, {subject.shape.name}"


def _write(bench: Bench, subject: Subject, condition: str, traffic: Traffic) -> None:
    note = f"{traffic.failures} failed" if traffic.failures else ""
    for percent in (50, 99):
        value = traffic.percentile_ms(percent)
        bench.sheet.add(_place(subject), f"{condition}, p{percent}", value, "ms", "lower", note)
    bench.say(f"    {subject.shape.name}, {condition}: p50 {traffic.percentile_ms(50):.1f} ms {note}")
