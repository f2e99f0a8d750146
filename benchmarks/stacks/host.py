"""A process for a library that is called, not served: `python -m benchmarks.stacks.host <module:Class> <json>`.

Owns both ends: `Hosted`, which starts the process on the measured cores and asks it for one timed pass at a time, and
`main`, which loads the library once and answers. Items are read before the clock starts and results written after it
stopped, so that a pass is the library's own time and nothing else.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.stacks.processes import BUILD, Program

__all__ = ["Contender", "Hosted", "Pass"]


class Contender(Protocol):
    """A library under measurement; its constructor loads the model and may warm it up."""

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Compute all items: texts to (n, d) embeddings, or [query, document] pairs to (n,) scores."""
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """One timed pass: seconds for all items, and when they were run one by one, ms for each."""

    seconds: float
    each_ms: list[float]


class Hosted:
    """A contender in a process of its own, on the measured cores.

    Args:
        name: names its log and its files.
        target: `module:Class` of the contender.
        arguments: keyword arguments of the class; JSON values.
        cores: cores that it may use; it is given as many threads.
        env: variables on top of our environment.
    """

    def __init__(
        self,
        name: str,
        target: str,
        arguments: Mapping[str, Any],
        cores: Sequence[int],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        threads = str(len(cores))
        command = [sys.executable, "-m", "benchmarks.stacks.host", target, json.dumps(dict(arguments))]
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TWOLANE_THREADS": threads,
            **(env or {}),
        }
        self._program = Program(name, command, cores, environment, pipes=True)
        self.load_s = float(self._reply()["load_s"])

    def run(self, items: Sequence[Any], save: Path | None = None) -> Pass:
        """Compute all items at once and return the time; the result goes to `save` as npy.

        Raises:
            RuntimeError: the contender failed; the message holds the end of its log.
        """
        return self._ask(items, save=save)

    def run_each(self, items: Sequence[Any]) -> Pass:
        """Compute the items one after another, each by itself."""
        return self._ask(items, each=True)

    def rss_mb(self) -> float:
        """Return its resident memory."""
        return float(self._program.family()[0].memory_info().rss) / 1e6

    def close(self) -> None:
        """End the process."""
        self._program.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, items: Sequence[Any], save: Path | None = None, *, each: bool = False) -> Pass:
        path = BUILD / f"{self.name}.items.json"
        path.write_text(json.dumps(list(items)))
        request = {"items": str(path), "save": str(save) if save else None, "each": each}
        pipe = self._program.process.stdin
        if pipe is None:
            raise RuntimeError(f"{self.name} was started without pipes")
        pipe.write(json.dumps(request).encode() + b"\n")
        pipe.flush()
        reply = self._reply()
        return Pass(float(reply["seconds"]), reply["each_ms"])

    def _reply(self) -> dict[str, Any]:
        pipe = self._program.process.stdout
        line = pipe.readline() if pipe is not None else b""
        if not line:
            self.close()
            raise RuntimeError(f"{self.name} failed; the end of its log:\n{self._program.tail()}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def main(target: str, arguments: str) -> None:
    """Load one contender and answer its parent until the pipe is closed."""
    # Libraries print what they like: their standard output goes to the log, the replies keep the pipe.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    started_s = time.perf_counter()
    module, _, name = target.partition(":")
    contender: Contender = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    _send(replies, {"load_s": time.perf_counter() - started_s})
    for line in sys.stdin.buffer:
        _send(replies, _serve(contender, json.loads(line)))
    # Device libraries may hang in their own clean-up at exit, and there is nothing left to save.
    os._exit(0)


def _serve(contender: Contender, request: Mapping[str, Any]) -> dict[str, Any]:
    items = json.loads(Path(request["items"]).read_text())
    each_ms: list[float] = []
    started_s = time.perf_counter()
    if request["each"]:
        for item in items:
            item_started_s = time.perf_counter()
            contender.run([item])
            each_ms.append((time.perf_counter() - item_started_s) * 1000)
        return {"seconds": time.perf_counter() - started_s, "each_ms": each_ms}
    values = contender.run(items)
    seconds = time.perf_counter() - started_s
    if request["save"]:
        np.save(request["save"], np.asarray(values, dtype=np.float32))
    return {"seconds": seconds, "each_ms": each_ms}


def _send(pipe: BinaryIO, reply: Mapping[str, Any]) -> None:
    pipe.write(json.dumps(dict(reply)).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
