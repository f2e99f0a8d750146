"""The peers that are servers, each started as its documentation says, on the measured cores.

Owns their command lines and the little that differs in how they are asked. The environments: `environment`.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus import model_folder
from benchmarks.load.loadgen import Target, request
from benchmarks.peers import environment
from benchmarks.stacks.processes import BUILD, Program, answers, wait_until
from stack.embedded_redis import free_port

__all__ = ["Server", "start_antsk", "start_infinity", "start_infinity_onnx"]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server that speaks OpenAI's embeddings."""

    name: str
    program: Program
    port: int
    path: str
    model: str

    def target(self, batches: Sequence[Sequence[str]]) -> Target:
        """Return one request per batch of texts."""
        bodies = (json.dumps({"model": self.model, "input": list(batch)}).encode() for batch in batches)
        return Target(self.port, tuple(request(self.path, body) for body in bodies))

    def rss_mb(self) -> float:
        """Return the resident memory of all its processes."""
        return sum(process.memory_info().rss for process in self.program.family()) / 1e6

    def close(self) -> None:
        """End it."""
        self.program.stop()


def start_infinity(cores: Sequence[int], device: str = "cpu") -> Server:
    """Start infinity-emb in its own environment with its own defaults, on as many threads as cores.

    Raises:
        environment.PeerMissing: its environment cannot be made.
        RuntimeError: it did not start; the message holds the end of its log.
    """
    python = environment.make_infinity()
    command = [str(python.with_name("infinity_emb")), *_infinity_arguments("torch", str(model_folder()), device)]
    return _start_infinity("infinity-emb torch", command, cores, {})


def start_infinity_onnx(cores: Sequence[int]) -> Server:
    """Start infinity-emb with its ONNX engine (`infinity_onnx`), its graph optimizer on.

    Raises:
        environment.PeerMissing: its environment cannot be made.
        RuntimeError: it did not start; the message holds the end of its log.
    """
    python = environment.make_infinity()
    module = "benchmarks.peers.infinity_onnx"
    folder = (BUILD / "onnx").absolute()
    if not (folder / "model.onnx").exists():
        subprocess.run([str(python), "-m", module, "export", str(model_folder()), str(folder)], check=True)
    options = ("--pooling-method", "mean", "--no-onnx-disable-optimize")
    # The model is named `.` and looked for in the working folder: with another name, a local file is not found.
    command = [str(python), "-m", module, *_infinity_arguments("optimum", "."), *options]
    env = {"PYTHONPATH": str(Path.cwd()), "HF_HOME": str(folder / "cache")}
    return _start_infinity("infinity-emb onnx", command, cores, env, folder)


def start_antsk(cores: Sequence[int], device: str = "cpu") -> Server:
    """Start the AntSK-PyApi way (`antsk_app`) under uvicorn.

    Raises:
        environment.PeerMissing: fastapi and uvicorn cannot be installed.
        RuntimeError: it did not start; the message holds the end of its log.
    """
    overlay = environment.make_overlay()
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.peers.antsk_app", str(model_folder()), str(port), device]
    program = Program("antsk", command, cores, {**_threads(cores), "PYTHONPATH": str(overlay)})
    wait_until(lambda: answers(port, "/health"), program)
    return Server("AntSK-PyApi way", program, port, "/v1/embeddings", "minilm")


def _infinity_arguments(engine: str, model: str, device: str = "cpu") -> list[str]:
    names = ["--model-id", model, "--served-model-name", "minilm"]
    return ["v2", *names, "--engine", engine, "--device", device, "--host", "127.0.0.1", "--log-level", "warning"]


def _start_infinity(
    name: str, command: Sequence[str], cores: Sequence[int], env: Mapping[str, str], folder: Path | None = None
) -> Server:
    port = free_port()
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    started = [*command, "--port", str(port)]
    program = Program(name.replace(" ", "-"), started, cores, {**_threads(cores), **quiet, **env}, folder=folder)
    wait_until(lambda: answers(port, "/health"), program)
    return Server(name, program, port, "/embeddings", "minilm")


def _threads(cores: Sequence[int]) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(len(cores)), "MKL_NUM_THREADS": str(len(cores))}
