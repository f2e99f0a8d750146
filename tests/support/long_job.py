"""`python -m tests.support.long_job --texts N`: a large job on the real model, workers and server killed.

Starts what `make serve` starts, with a server of its own. At a fifth of the job every worker is killed, at two fifths
the server, at three fifths every worker again; then each item is audited, and a sample of the vectors is compared with
sentence-transformers in float32. Prints what happened and when; the exit code is 1 when anything does not hold.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from redis import Redis

from config.catalog import slug_of
from tests.support.audit import ENDED, audit_job_keys, audit_keys, call
from tests.support.corpus import passages
from tests.support.product import MODEL, reference, submit, vectors
from tests.support.stack_fixture import RunningStack, running_stack

__all__ = ["main"]

_SAMPLE_EVERY = 199
_LEAST_COSINE = 0.9995
_PATIENCE_S = 120


class LongJob:
    """One run.

    Args:
        stack: with the real model.
        texts: all items of the job.
    """

    def __init__(self, stack: RunningStack, texts: Sequence[str]) -> None:
        self._stack = stack
        self._texts = texts
        self._started_s = time.monotonic()
        self._http = httpx.Client(base_url=stack.url, timeout=60)

    def run(self) -> None:
        """Submit, break, wait, audit.

        Raises:
            AssertionError: something does not hold.
        """
        job_id = str(submit(self._http, list(self._texts))["id"])
        self._say(f"submitted {len(self._texts):,} texts as {job_id}")
        job = self._wait(job_id, [(0.2, self._kill_workers), (0.4, self._kill_server), (0.6, self._kill_workers)])
        self._say(f"{job['status']}: {job['counts']}")
        assert job["status"] == "succeeded", job
        assert job["counts"]["completed"] == job["counts"]["total"] == len(self._texts), job
        self._audit(job_id)

    def _wait(self, job_id: str, faults: list[tuple[float, Callable[[], None]]]) -> dict[str, Any]:
        tenths = 0
        while True:
            headers = {"Prefer": "wait=1"}
            job = dict(call(self._http, "GET", f"/v1/jobs/{job_id}", within_s=_PATIENCE_S, headers=headers).json())
            done = job["counts"]["completed"] / len(self._texts)
            if done * 10 >= tenths + 1:
                tenths = int(done * 10)
                self._say(f"{done:.0%} done, {job['tokens_per_s']} tokens/s, workers {self._resident_mb():.0f} MB")
            if faults and done >= faults[0][0]:
                faults.pop(0)[1]()
            if job["status"] in ENDED:
                assert not faults, "the job ended before all faults had happened"
                return job

    def _kill_workers(self) -> None:
        for pid in self._stack.worker_pids():
            self._say(f"kill -9 of worker {pid}")
            os.kill(pid, signal.SIGKILL)

    def _kill_server(self) -> None:
        self._say(f"kill -9 of the server {self._stack.server.pid}, and a start on what it had written")
        self._stack.server.kill()
        self._stack.server.start()

    def _audit(self, job_id: str) -> None:
        matrix = vectors(self._http, job_id)
        assert matrix.shape == (len(self._texts), 384), matrix.shape
        seen = 0
        for index, row in enumerate(self._rows(job_id)):
            assert (row["index"], row["id"]) == (index, f"p{index}"), row
            assert "error" not in row, row
            np.testing.assert_allclose(row["embedding"], matrix[index], atol=1e-6)
            seen += 1
        assert seen == len(self._texts), seen
        self._say(f"{seen:,} outcomes, one for each id, in order, and the same as NDJSON and as .npy")
        self._say(f"worst cosine of every {_SAMPLE_EVERY}th text to float32: {self._worst_cosine(matrix):.6f}")
        with Redis.from_url(self._stack.redis_url) as redis:
            audit_job_keys(redis, job_id, slug_of(MODEL))
            audit_keys(redis)
        self._say("no lease, turn or reservation is left, and no key without an expiry")

    def _rows(self, job_id: str) -> Iterator[dict[str, Any]]:
        with self._http.stream("GET", f"/v1/jobs/{job_id}/results", params={"format": "ndjson"}) as answer:
            assert answer.status_code == httpx.codes.OK
            for line in answer.iter_lines():
                yield json.loads(line)

    def _worst_cosine(self, matrix: NDArray[np.float32]) -> float:
        expected = reference([self._texts[i] for i in range(0, len(self._texts), _SAMPLE_EVERY)])
        worst = float((matrix[::_SAMPLE_EVERY] * expected).sum(axis=1).min())
        assert worst >= _LEAST_COSINE, worst
        return worst

    def _resident_mb(self) -> float:
        return sum(psutil.Process(pid).memory_info().rss for pid in self._stack.worker_pids()) / 1e6

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started_s:7.1f} s  {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=200_000, help="how many")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="twolane-long-job-") as name:
        folder = Path(name)
        with running_stack(folder, MODEL) as stack:
            try:
                LongJob(stack, passages(options.texts)).run()
            except AssertionError:
                traceback.print_exc()
                print("FAILED; the end of the stack's log:", *stack.log.read_text("utf-8").splitlines()[-40:], sep="\n")
                return 1
    print(f"passed: {options.texts:,} texts, nothing lost and nothing twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
