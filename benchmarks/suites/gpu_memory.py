"""Suite `gpu-memory`: what a model takes on the host while it is loaded, and on the card once it is warm."""

from functools import partial

import numpy as np

from benchmarks.bench import Bench
from benchmarks.devices.device_probes import Memory
from benchmarks.devices.gpu import subjects
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.processes import BUILD

__all__ = ["SUITE", "run"]

SUITE = "gpu-memory"


def run(bench: Bench) -> None:
    """Load each shape in a fresh process; its checkpoint's size stands beside what it took."""
    for subject in subjects(bench):
        shape, arguments = subject.shape.name, subject.engine_arguments(bench)
        start = partial(
            Hosted, f"gpu-memory-{shape}", "benchmarks.devices.device_probes:Memory", arguments, bench.cores.server
        )
        memory = bench.try_start(f"the engine, {shape}", start)
        if memory is None:
            continue
        place = (SUITE, f"Twolane engine, {shape}")
        weights = sum(path.stat().st_size for path in subject.folder.glob("*.safetensors")) / 1e6
        bench.sheet.add(place, "checkpoint", weights, "MB")
        with memory:
            memory.run([0], save=BUILD / "memory.npy")
            for figure, value in zip(Memory.FIGURES, np.load(BUILD / "memory.npy"), strict=True):
                name, _, unit = figure.rpartition(", ")
                bench.sheet.add(place, name, float(value), unit, "lower")
