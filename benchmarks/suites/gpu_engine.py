"""Suite `gpu-engine`: our engine on one card, ids to vectors and texts to vectors, as shares of A.

Owns the two contenders and the single short text. Shapes and texts are `benchmarks.devices.gpu`'s.
"""

from functools import partial

import numpy as np

from benchmarks.bench import Bench
from benchmarks.devices.gpu import LENGTHS, Subject, ceiling, share, subjects
from benchmarks.stacks.host import Hosted

__all__ = ["SUITE", "run"]

SUITE = "gpu-engine"
_CONTENDERS = {
    "Twolane backend, ids to values": "benchmarks.devices.device_probes:Ids",
    "Twolane engine, texts to values": "benchmarks.devices.bare_engine:BareEngine",
}
_ONE_BY_ONE = 200


def run(bench: Bench) -> None:
    """Measure shape by shape, so that one model at a time is on the card."""
    with ceiling(bench) as gemm:
        for subject in subjects(bench):
            for name, target in _CONTENDERS.items():
                start = partial(
                    Hosted, f"gpu-{subject.shape.name}", target, subject.engine_arguments(bench), bench.cores.server
                )
                contender = bench.try_start(f"{name}, {subject.shape.name}", start)
                if contender is not None:
                    with contender:
                        _measure(bench, gemm, subject, (name, contender))


def _measure(bench: Bench, gemm: Hosted, subject: Subject, named: tuple[str, Hosted]) -> None:
    name, contender = named
    place, shape = (SUITE, name), subject.shape.name
    for length in LENGTHS:
        items, tokens = subject.items[length], int(subject.tokens[length].sum())
        contender.run(items)
        for _ in range(bench.plan.rounds):
            seconds = contender.run(items).seconds
            percent = share(gemm, subject, subject.tokens[length], seconds)
            bench.sheet.add(
                place, f"{shape} at {length}", tokens / seconds, "tokens/s", "higher", f"{len(items)} items"
            )
            bench.sheet.add(place, f"{shape} at {length}, share of A", percent, "%", "higher")
        bench.say(f"    {name}, {shape} at {length}: {tokens / seconds:,.0f} tokens/s, {percent:.0f}% of A")
    short = [item for item in subject.items[86] if len(str(item)) < 200][: 5 if bench.plan.quick else _ONE_BY_ONE]
    contender.run_each(short)
    each_ms = contender.run_each(short).each_ms
    for percent in (50, 99):
        value = float(np.percentile(each_ms, percent))
        bench.sheet.add(place, f"{shape}, one short item, p{percent}", value, "ms", "lower")
