"""Suite `gpu-limits`: what this card does at most. Owns no model: products, attention and copies alone."""

import numpy as np

from benchmarks.bench import Bench
from benchmarks.devices.device_probes import Limits
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.processes import BUILD

__all__ = ["SUITE", "run"]

SUITE = "gpu-limits"


def run(bench: Bench) -> None:
    """Measure A, and what attention and copies reach."""
    arguments, cores = {"device": bench.device}, bench.cores.server
    with (
        Hosted("gpu-gemm", "benchmarks.devices.gemm:Gemm", arguments, cores) as gemm,
        Hosted("gpu-limits", "benchmarks.devices.device_probes:Limits", arguments, cores) as limits,
    ):
        for _ in range(bench.plan.rounds):
            gemm.run([0], save=BUILD / "gemm.npy")
            a = float(np.load(BUILD / "gemm.npy").max()) / 1e12
            bench.sheet.add((SUITE, "torch.matmul bf16"), "A: best square product", a, "TFLOP/s")
            limits.run([2 if bench.plan.quick else 128], save=BUILD / "limits.npy")
            for figure, value in zip(Limits.FIGURES, np.load(BUILD / "limits.npy"), strict=True):
                name, _, unit = figure.rpartition(", ")
                bench.sheet.add(
                    (SUITE, "packed attention" if "attention" in name else "device memory"), name, value, unit
                )
            bench.say(f"    A {a:.1f} TFLOP/s")
