"""`python -m benchmarks [suite ...] [--quick] [--rounds N] [--no-peers]`: measure, print the tables, write the results.

Owns the order of the suites. A suite that fails is written down and the others go on.
"""

import argparse
import datetime as dt
import importlib
import sys
import time
import traceback
from dataclasses import replace

from rich.console import Console

from benchmarks import machine
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.report import print_tables, write_docs, write_results

__all__ = ["main"]

SUITES = {
    "engine": "our engine and our whole job beside FlagEmbedding and sentence-transformers",
    "peers": "over HTTP, beside infinity-emb and the AntSK-PyApi way",
    "lane": "interactive latency while a corpus is embedded, with two lanes and with one",
    "web": "the web tier's start, memory, uploads and share of a request",
    "jobs": "chunks, fake jobs, reading, Redis' memory, recovery after kill -9",
    "fairness": "fifty tenants on a fake device: their shares, and how soon an idle one's small job starts",
    "memory": "what each loaded model takes, and the worker's memory over many texts",
    "shapes": "bge-base- and bge-m3-shaped models and a reranker, random weights",
    "abuse": "small calls and probes while others read and send slowly, call a slow model or send costly bodies",
    "cores": "threads and pinning of a worker (only when named)",
    "gpu-limits": "what the card does at most: products, attention, copies",
    "gpu-engine": "our engine on a card, as shares of its rate of products: base, m3, reranker and Qwen3 shapes",
    "gpu-peers": "the same texts by FlagEmbedding and sentence-transformers, at their best batch size",
    "gpu-lanes": "small calls beside bulk work that saturates the card",
    "gpu-stack": "the whole stack on a card: 200,000 passages, small calls, both, and a worker killed in the middle",
    "gpu-memory": "what models take on the host while loaded, and on the card",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the suites that were asked for, by default a whole run; return the exit code."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    cores = machine.split_cores()
    description = machine.describe()
    plan = QUICK if options.quick else FULL
    device = "cuda" if description["gpus"] else "cpu"
    suites = options.suites or _whole_run(device)
    if device == "cpu" and not plan.quick:
        suites = [name for name in suites if not name.startswith("gpu-")]
        if not suites:
            console.print("There is no CUDA device here, so there is nothing to measure; --quick tries the suite out.")
            return 0
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    if device == "cuda":  # what takes a CPU seconds is over before a GPU is warm
        plan = replace(plan, passages=plan.job_passages, shape_passages=plan.job_passages)
    bench = Bench(plan, cores, with_peers=options.peers, device=device, say=_log)
    if not cores.apart:
        bench.sheet.leave_out("cores of its own for the load generator", "this machine has too few")
    failed = _run(bench, suites)
    now = dt.datetime.now(dt.UTC)
    run = {
        "date": now.strftime("%Y-%m-%d"),
        "at": now.isoformat(timespec="seconds"),
        "quick": bench.plan.quick,
        "rounds": bench.plan.rounds,
        "suites": suites,
        "complete": not options.suites and bench.with_peers,
        "server_cores": list(cores.server),
        "client_cores": list(cores.client),
        "corpus": bench.corpus.describe(),
    }
    for gpu in description["gpus"]:
        console.print(f"card: {gpu}", markup=False)
    print_tables(console, bench.sheet)
    path = write_results(bench.sheet, description, run)
    console.print(f"written: {path}", markup=False)
    if options.docs or (run["complete"] and not run["quick"]):
        write_docs(description)
    return 1 if failed else 0


def _whole_run(device: str) -> list[str]:
    return [name for name in SUITES if name != "cores" and (device == "cuda" or not name.startswith("gpu-"))]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    lines = "\n".join(f"  {name:<10} {text}" for name, text in SUITES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"suites:\n{lines}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "suites",
        nargs="*",
        choices=[[], *SUITES],
        metavar="suite",
        help="default: all but cores, those of GPUs where there is one",
    )
    parser.add_argument("--quick", action="store_true", help="one small round: finds mistakes, not figures")
    parser.add_argument("--rounds", type=int, help="measure everything so often instead of three times")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="measure ours alone")
    parser.add_argument(
        "--docs", action="store_true", help="write the newest figures into docs/benchmarks.md, as a whole run does"
    )
    return parser.parse_args(arguments)


def _run(bench: Bench, suites: list[str]) -> list[str]:
    failed = []
    try:
        for name in suites:
            started_s = time.monotonic()
            _log(f"{name}: {SUITES[name]}")
            try:
                importlib.import_module(f"benchmarks.suites.{name.replace('-', '_')}").run(bench)
            except Exception as error:  # noqa: BLE001 - the edge of a suite: the others have figures to give
                traceback.print_exc()
                bench.sheet.leave_out(f"suite {name}, from where it failed", error)
                failed.append(name)
            _log(f"{name}: {time.monotonic() - started_s:.0f} s")
    finally:
        bench.close()
    return failed


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
