"""Our own product as a user runs it: `python -m stack.serve` on the measured cores, asked over HTTP.

Owns starting it, its process ids, and the few calls that a client makes for a job. Nothing here reaches behind the API,
but for `redis_url`, which lets a measurement read Redis' memory.
"""

import http.client
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.load.loadgen import Target, request
from benchmarks.stacks.processes import BUILD, Program, answers, wait_until
from stack.embedded_redis import free_port

__all__ = ["MODEL", "JobRun", "Ours"]

MODEL = "all-MiniLM-L6-v2"
_READ_BYTES = 2**20
_LONGEST_WAIT_S = 20
_STANDSTILL_S = 300.0  # a worker that was killed may have to load a large model first


@dataclass(frozen=True, slots=True)
class JobRun:
    """A job from the first byte sent to the last byte fetched: seconds to its 202, to its end and to the last byte."""

    job: Mapping[str, Any]
    accepted_s: float
    ended_s: float
    fetched_s: float
    vectors: NDArray[np.float32]


class Ours:
    """A running stack.

    Args:
        name: names its log and its data folder.
        cores: cores of everything: web, worker, store and dashboard.
        env: settings (`TWOLANE_...`) on top of the defaults.
        model: catalogue name of the model that it serves.
    """

    name = "Twolane"

    def __init__(
        self, name: str, cores: Sequence[int], env: Mapping[str, str] | None = None, model: str = MODEL
    ) -> None:
        self.model = model
        self.port = free_port()
        self.data = (BUILD / "data" / name).absolute()
        shutil.rmtree(self.data / "server", ignore_errors=True)  # jobs of the last run; exported models stay
        settings = {
            "TWOLANE_DATA_DIR": str(self.data),
            "TWOLANE_MODELS": model,
            "TWOLANE_THREADS": str(len(cores)),
            "PORT": str(self.port),
            **(env or {}),
        }
        self.program = Program(name, [sys.executable, "-m", "stack.serve"], cores, settings)
        wait_until(lambda: answers(self.port, "/readyz"), self.program)

    @property
    def redis_url(self) -> str:
        """URL of Redis, read from its command line and the stack's folder."""
        server = next(p for p in self.program.family() if p.name() in {"valkey-server", "redis-server"})
        port = re.search(r"127\.0\.0\.1:(\d+)", " ".join(server.cmdline()))
        if port is None:
            raise RuntimeError("Redis' process does not show its port")
        password = (self.data / "redis-password").read_text("utf-8").strip()
        return f"redis://:{password}@127.0.0.1:{port[1]}/0"

    def web(self) -> list[psutil.Process]:
        """Return the processes of the web tier."""
        return [p for p in self.program.family() if "app" in _module(p)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes that hold models, without the launcher that watches them."""
        celery = [p for p in self.program.family() if _module(p) == ["celery"] and "flower" not in p.cmdline()]
        if not celery:
            raise RuntimeError("no worker process was found")
        return celery

    def target(self, batches: Sequence[Sequence[str]]) -> Target:
        """Return one `POST /v1/embeddings` for each batch of texts."""
        bodies = (json.dumps({"model": self.model, "input": list(batch)}).encode() for batch in batches)
        return Target(self.port, tuple(request("/v1/embeddings", body) for body in bodies))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of one synchronous call."""
        body = json.dumps({"model": self.model, "input": list(texts)}).encode()
        answer = self.call("POST", "/v1/embeddings", body)
        return np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)

    def submit(self, lines: Iterable[bytes], options: str = "") -> dict[str, Any]:
        """Send texts as NDJSON while they are made, as a chunked body, and return the job."""
        headers = {"Content-Type": "application/x-ndjson", "Prefer": "respond-async"}
        return self.call("POST", f"/v1/jobs?model={self.model}{options}", _blocks(lines), headers)

    def job(self, job_id: str, wait_s: int = 0) -> dict[str, Any]:
        """Return a job now, or when it has ended, at the latest after `wait_s`."""
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        return self.call("GET", f"/v1/jobs/{job_id}", headers=headers)

    def wait(self, job_id: str) -> dict[str, Any]:
        """Return a job when it has ended.

        Raises:
            RuntimeError: it ended without success, or with failed items, or stood still: its time would mean nothing.
        """
        moved_s, done = time.monotonic(), -1
        while (job := self.job(job_id, _LONGEST_WAIT_S))["status"] in {"queued", "running"}:
            if job["counts"]["completed"] != done:
                moved_s, done = time.monotonic(), job["counts"]["completed"]
            if time.monotonic() - moved_s > _STANDSTILL_S:
                raise RuntimeError(f"the job stands still: {job}; the end of the log:\n{self.program.tail()}")
            time.sleep(0.01)  # the waiting room may have been full
        if job["status"] != "succeeded" or job["counts"]["failed"]:
            raise RuntimeError(f"the job did not succeed: {job}")
        return job

    def order(self, model: str, action: str, within_s: float) -> None:
        """Have the worker load or unload a model, and return when it has.

        Raises:
            TimeoutError: it has not in that time.
        """
        address = f"/v1/models/{quote(model)}"
        number = self.call("POST", f"{address}/{action}")["id"]
        until_s = time.monotonic() + within_s
        while not any(worker["order"] >= number for worker in self.call("GET", address)["workers"]):
            if time.monotonic() > until_s:
                raise TimeoutError(f"{action} of {model} was not followed")
            time.sleep(0.2)

    def cancel(self, job_id: str) -> None:
        """End a job early."""
        self.call("DELETE", f"/v1/jobs/{job_id}")

    def fetch(self, job_id: str) -> bytes:
        """Return the results as npy, read to the last byte."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", f"/v1/jobs/{job_id}/results?format=npy")
        answer = connection.getresponse()
        pieces = []
        while piece := answer.read(_READ_BYTES):
            pieces.append(piece)
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"no results: {answer.status} {b''.join(pieces)[:300]!r}")
        return b"".join(pieces)

    def run_job(self, lines: Iterable[bytes]) -> JobRun:
        """Submit, wait, fetch: the whole way of a large job."""
        started_s = time.perf_counter()
        job = self.submit(lines)
        accepted_s = time.perf_counter() - started_s
        job = self.wait(job["id"])
        ended_s = time.perf_counter() - started_s
        file = self.fetch(job["id"])
        fetched_s = time.perf_counter() - started_s
        return JobRun(job, accepted_s, ended_s, fetched_s, np.load(io.BytesIO(file)))

    def vectors(self, job_id: str) -> NDArray[np.float32]:
        """Return the vectors of a job in the order of its texts, shape (n, dimension)."""
        return np.asarray(np.load(io.BytesIO(self.fetch(job_id))))

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Make one call on a connection of its own and return the JSON answer.

        Raises:
            RuntimeError: the answer was an error.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            told = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body, told, encode_chunked=not isinstance(body, bytes | None))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        parsed: dict[str, Any] = json.loads(content)
        return parsed

    def close(self) -> None:
        """Stop everything, as Ctrl-C would."""
        self.program.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _module(process: psutil.Process) -> list[str]:
    """Return the module that a Python process runs, as a list of one, or nothing."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return []
    return words[words.index("-m") + 1 : words.index("-m") + 2] if "-m" in words else []


def _blocks(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Join lines to blocks of some 64 KB: one line a chunk would measure our client."""
    block = io.BytesIO()
    for line in lines:
        block.write(line)
        if block.tell() >= 2**16:
            yield block.getvalue()
            block = io.BytesIO()
    if block.tell():
        yield block.getvalue()
