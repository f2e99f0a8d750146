"""Suite `gpu-lanes`: how fast a small call is beside bulk work that saturates the card, and what bulk keeps.

Owns the condition: one engine, bulk without a pause, a call every 20 ms. The whole stack is the suite `lane`.
"""

from functools import partial

import numpy as np

from benchmarks.bench import Bench
from benchmarks.devices.device_probes import Lanes
from benchmarks.devices.gpu import subjects
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.processes import BUILD

__all__ = ["SUITE", "run"]

SUITE = "gpu-lanes"


def run(bench: Bench) -> None:
    """Measure the embedders."""
    for subject in subjects(bench, ("encoder", "bge-m3", "decoder")):
        shape, arguments = subject.shape.name, subject.engine_arguments(bench)
        start = partial(
            Hosted, f"gpu-lanes-{shape}", "benchmarks.devices.device_probes:Lanes", arguments, bench.cores.server
        )
        lanes = bench.try_start(f"the engine, {shape}", start)
        if lanes is None:
            continue
        with lanes:
            for _ in range(bench.plan.rounds):
                seconds = 1.0 if bench.plan.quick else 6.0
                lanes.run([subject.items[86], list(bench.corpus.queries[:200]), seconds], save=BUILD / "lanes.npy")
                for figure, value in zip(Lanes.FIGURES, np.load(BUILD / "lanes.npy"), strict=True):
                    name, _, unit = figure.rpartition(", ")
                    better = "lower" if unit == "ms" else "higher"
                    bench.sheet.add((SUITE, f"Twolane engine, {shape}"), name, float(value), unit, better)
