"""`python -m benchmarks.comparisons.small_calls [TREE ...]`: a small call's cost to each process.

Owns the comparison: for each tree (default: this one) a server, web processes and a worker with a fake model that
computes nothing, loaded in turn, round after round. Processor time per call is the figure to compare on a busy machine:
requests/s depend on who else runs there.
"""

import argparse
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.load.loadgen import LoadGenerator, Target, request
from benchmarks.stacks.processes import BUILD, Program, answers, wait_until
from stack.embedded_redis import EmbeddedServer, free_port

__all__ = ["main"]

_CARD = """[[models]]
name = "idle"
source = "none:"
family = "fake"
backend = "fake"
capabilities = ["dense", "rerank"]
rerank_by = "similarity"
dimension = 384
max_tokens = 256
pooling = "mean"
"""
_TEXTS = 997


@dataclass(slots=True)
class Stack:
    """A running stack; processor seconds by its part come from the kernel."""

    port: int
    parts: dict[str, psutil.Process]
    environment: dict[str, str]

    def used_s(self) -> dict[str, float]:
        """Return the processor seconds that each part has used, its children included."""
        used: dict[str, float] = {}
        for name, process in self.parts.items():
            times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
            used[f"{name} user"] = sum(one.user for one in times)
            used[f"{name} kernel"] = sum(one.system for one in times)
        return used


@contextmanager
def running_stack(tree: Path, number: int, web: int, workers: int) -> Iterator[Stack]:
    """Start the stack of a tree: its own code, with the packages of its `.venv` if it has one, else with ours."""
    folder = (BUILD / "data" / f"small-{number}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "idle.toml").write_text(_CARD, "utf-8")
    cores, port = sorted(os.sched_getaffinity(0)), free_port()
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(folder / "server"))
        fields = {"REDIS_URL": server.url, "MODELS": "idle", "CATALOG_FILE": str(folder / "idle.toml")}
        fields |= {"DATA_DIR": str(folder), "PORT": str(port), "WEB_WORKERS": str(web)}
        environment = {f"TWOLANE_{name}": value for name, value in fields.items()}
        environment |= {"PORT": str(port), "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        worker = ["-m", "celery", "--quiet", "--app", "workers.boot", "worker", "--pool", "threads"]
        worker += ["--without-mingle", "--without-gossip"]
        own = tree / ".venv" / "bin" / "python"
        python = str(own) if own.exists() else sys.executable
        parts = {"redis": psutil.Process(server.pid)}
        for index in range(workers):
            name = f"worker-{index}"
            command = [python, *worker, "--hostname", f"{name}@%h"]
            program = Program(f"small-{number}-{name}", command, cores, environment, folder=tree)
            parts[name] = psutil.Process(stack.enter_context(program).pid)
        front = Program(f"small-{number}-web", [python, "-m", "app"], cores, environment, folder=tree)
        parts["web"] = psutil.Process(stack.enter_context(front).pid)
        wait_until(lambda: answers(port, "/readyz"), front)
        yield Stack(port, parts, environment)


def _requests(items: int) -> tuple[bytes, ...]:
    texts = [f"passage number {number} of a search box" for number in range(_TEXTS)]
    inputs: list[object] = [text if items == 1 else [f"{text} {i}" for i in range(items)] for text in texts]
    return tuple(request("/v1/embeddings", orjson.dumps({"model": "idle", "input": one})) for one in inputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print medians over the rounds; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparisons.small_calls", description=__doc__.split("\n")[0]
    )
    parser.add_argument("trees", nargs="*", type=Path, default=[Path.cwd()], help="checkouts to compare")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--web", type=int, default=1, help="web processes")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--items", type=int, default=1, help="texts of a call")
    options = parser.parse_args(arguments)
    found: defaultdict[tuple[int, Path, str], list[float]] = defaultdict(list)
    load = LoadGenerator(sorted(os.sched_getaffinity(0))[:1] * 1)
    with ExitStack() as opened:
        opened.callback(load.close)
        stacks = {
            tree: opened.enter_context(running_stack(tree.absolute(), number, options.web, options.workers))
            for number, tree in enumerate(options.trees)
        }
        for _ in range(options.rounds):
            for clients in options.clients:
                for tree, stack in stacks.items():
                    for name, value in _measure(load, stack, clients, options).items():
                        found[clients, tree, name].append(value)
    _show(found)
    return 0


def _measure(load: LoadGenerator, stack: Stack, clients: int, options: argparse.Namespace) -> dict[str, float]:
    target = Target(stack.port, _requests(options.items))
    before = stack.used_s()
    traffic = load.hold(target, clients, options.seconds, warmup_s=0.0)
    after = stack.used_s()
    if traffic.failures:
        raise RuntimeError(f"{traffic.failures} calls failed: {traffic.statuses}")
    calls = len(traffic.latencies_ms)
    figures = {"calls/s": traffic.rate, "p50 ms": traffic.percentile_ms(50), "p99 ms": traffic.percentile_ms(99)}
    figures |= {f"{name} ms": (after[name] - before[name]) * 1000 / calls for name in after}
    return figures


def _show(found: dict[tuple[int, Path, str], list[float]]) -> None:
    names = list(dict.fromkeys(name for _, _, name in found))
    table = Table("clients", "tree", *names, title="medians")
    for clients, tree in dict.fromkeys((clients, tree) for clients, tree, _ in found):
        values = (f"{statistics.median(found[clients, tree, name]):.3g}" for name in names)
        table.add_row(str(clients), str(tree), *values)
    Console(width=170).print(table)


if __name__ == "__main__":
    sys.exit(main())
