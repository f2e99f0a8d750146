"""`python -m tests.support.soak --minutes N [--seed S]`: random faults under load, and the audit at the end.

Server, web and two workers run on the fake model, the workers' lines go through a proxy. Clients keep submitting jobs,
some cancel theirs, some ask for one text at a time; they behave as SDKs do and try again. Meanwhile faults come one
after another, drawn from the seed; which step of the work each one strikes depends on the machine, too. At the end
nothing breaks any more: then every job has to end, and every job is audited.
Prints what happened and a closing line; the exit code is 1 when anything does not hold.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil

from tests.support.audit import audit_job, audit_keys, call, submit, wait_for_end
from tests.support.own_stack import OwnStack, opened_stack
from tests.support.proxy import Proxy

__all__ = ["main"]

_CLIENTS = 4
_PATIENCE_S = 90
_END_S = 120


class Soak:
    """One run.

    Args:
        stack: with server, web and workers not yet started.
        proxy: between workers and server.
        seed: decides the faults and the jobs.
    """

    def __init__(self, stack: OwnStack, proxy: Proxy, seed: int) -> None:
        self._stack = stack
        self._proxy = proxy
        self._dice = random.Random(seed)
        self._seed = seed
        self._started_s = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._keeping = True
        self._processes = threading.RLock()
        self.jobs: dict[str, list[str]] = {}
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()

    def run(self, minutes: float) -> None:
        """Break things for so long, then let everything end and audit it."""
        self._stack.start_web()
        for _ in range(2):
            self._stack.start_worker(self._proxy.url)
        self._stack.wait_until_ready(2)
        keeper = threading.Thread(target=self._edge, args=(self._keep_alive,))
        callers = [threading.Thread(target=self._edge, args=(self._submit, i)) for i in range(_CLIENTS)]
        callers.append(threading.Thread(target=self._edge, args=(self._ask,)))
        for thread in (keeper, *callers):
            thread.start()
        try:
            until_s = time.monotonic() + minutes * 60
            while time.monotonic() < until_s and not self.violations:
                time.sleep(self._dice.uniform(0.2, 3.0))
                self._break_something()
            self.say("the faults are over")
        finally:
            self._heal()
            self._stop.set()
            for thread in callers:
                thread.join()
        try:
            self._audit()
        finally:
            self._keeping = False
            keeper.join()

    # -- load

    def _submit(self, number: int) -> None:
        dice = random.Random(f"{self._seed}/{number}")
        with httpx.Client(base_url=self._stack.url, timeout=20) as http:
            while not self._stop.is_set():
                size = dice.choice([5, 40, 200, 1000])
                texts = [f"job {number} text {i} " + "word " * dice.randrange(60) for i in range(size)]
                key = uuid.UUID(int=dice.getrandbits(128)).hex
                job_id = submit(http, texts, key)
                if dice.random() < 0.3 and submit(http, texts, key) != job_id:
                    self._violated(f"the key {key} named two jobs")
                with self._lock:
                    self.jobs[job_id] = texts
                self.counts["jobs"] += 1
                self.counts["items"] += size
                if dice.random() < 0.2:
                    time.sleep(dice.uniform(0, 2))
                    call(http, "POST", f"/v1/jobs/{job_id}/cancel", within_s=_PATIENCE_S)
                    self.counts["cancelled"] += 1
                if dice.random() < 0.7:
                    wait_for_end(http, job_id, _END_S)

    def _ask(self) -> None:
        """Small calls: an answer, or a refusal that says to come again; never anything else."""
        with httpx.Client(base_url=self._stack.url, timeout=20) as http:
            while not self._stop.is_set():
                with contextlib.suppress(httpx.TransportError):
                    answer = http.post("/v1/embeddings", json={"model": "fake", "input": "small"})
                    self.counts[f"small calls answered {answer.status_code}"] += 1
                    if answer.status_code not in {200, 429, 503, 504}:
                        self._violated(f"a small call was answered {answer.status_code}: {answer.text[:300]}")
                time.sleep(0.05)

    # -- faults

    def _break_something(self) -> None:
        faults: list[tuple[Callable[[], None], int]] = [
            (self._kill_worker, 4),
            (self._stop_worker, 2),
            (self._freeze_worker, 2),
            (self._kill_server, 2),
            (self._freeze_server, 1),
            (self._kill_web, 2),
            (self._cut_lines, 2),
            (self._freeze_lines, 1),
            (self._lose_replies, 2),
            (self._flush_scripts, 2),
            (self._flush_broker, 1),
        ]
        fault = self._dice.choices([one for one, _ in faults], [weight for _, weight in faults])[0]
        self.counts[fault.__name__.strip("_").replace("_", " ")] += 1
        with self._processes:
            fault()

    def _worker(self) -> psutil.Process:
        return psutil.Process(self._dice.choice([one for one in self._stack.workers if one.poll() is None]).pid)

    def _kill_worker(self) -> None:
        worker = self._worker()
        self.say(f"kill -9 of worker {worker.pid}")
        worker.kill()

    def _stop_worker(self) -> None:
        worker = self._worker()
        self.say(f"SIGTERM to worker {worker.pid}")
        worker.terminate()

    def _freeze_worker(self) -> None:
        worker, pause_s = self._worker(), self._dice.uniform(0.5, 6)
        self.say(f"worker {worker.pid} is frozen for {pause_s:.1f} s")
        worker.suspend()
        time.sleep(pause_s)
        worker.resume()

    def _kill_server(self) -> None:
        times = self._dice.choice([1, 1, 5])
        self.say(f"kill -9 of the server, {times} times")
        for _ in range(times):
            self._stack.server.kill()
            time.sleep(self._dice.uniform(0, 0.5))
            self._stack.server.start()

    def _freeze_server(self) -> None:
        pause_s = self._dice.uniform(0.5, 8)
        self.say(f"the server stands still for {pause_s:.1f} s")
        self._stack.server_process().suspend()
        time.sleep(pause_s)
        self._stack.server_process().resume()

    def _kill_web(self) -> None:
        self.say("kill -9 of the web server")
        self._stack.kill_web()
        self._stack.start_web()

    def _cut_lines(self) -> None:
        self.say("all lines of the workers are cut")
        self._proxy.cut()

    def _freeze_lines(self) -> None:
        pause_s = self._dice.uniform(0.5, 8)
        self.say(f"nothing passes between workers and server for {pause_s:.1f} s")
        self._proxy.freeze()
        time.sleep(pause_s)
        self._proxy.thaw()

    def _lose_replies(self) -> None:
        part, pause_s = self._dice.choice([0.01, 0.05, 0.2]), self._dice.uniform(1, 5)
        self.say(f"{part:.0%} of the replies to workers are lost for {pause_s:.1f} s")
        self._proxy.lose_replies(part, self._dice.randrange(10**9))
        time.sleep(pause_s)
        self._proxy.lose_replies(0, 0)

    def _flush_scripts(self) -> None:
        self.say("SCRIPT FLUSH")
        with self._stack.redis() as redis:
            redis.script_flush()

    def _flush_broker(self) -> None:
        self.say("the broker forgets everything")
        with self._stack.redis() as redis:
            for key in redis.scan_iter("twolane:broker:*", count=1000):
                redis.delete(key)

    def _heal(self) -> None:
        self._proxy.thaw()
        self._proxy.lose_replies(0, 0)

    def _keep_alive(self) -> None:
        """Replace workers that are gone, as the launcher does but at once."""
        while self._keeping:
            with self._processes:
                gone = [one for one in self._stack.workers if one.poll() is not None]
                for process in gone:
                    if process.returncode not in {0, -signal.SIGKILL, -signal.SIGTERM}:
                        self._violated(f"a worker ended by itself with code {process.returncode}")
                    self._stack.workers.remove(process)
                    self._stack.start_worker(self._proxy.url)
            time.sleep(0.2)

    # -- the end

    def _audit(self) -> None:
        self.say(f"{len(self.jobs)} jobs have to end and are audited")
        with httpx.Client(base_url=self._stack.url, timeout=30) as http, self._stack.redis() as redis:
            for job_id, texts in self.jobs.items():
                try:
                    wait_for_end(http, job_id, _END_S)
                    self.counts[f"jobs {audit_job(http, redis, job_id, texts)['status']}"] += 1
                except Exception:  # noqa: BLE001 - the edge of an audit: the next job is audited too
                    self._violated(f"job {job_id}:\n{traceback.format_exc()}")
            audit_keys(redis)

    def say(self, text: str) -> None:
        """Print what happens."""
        print(f"{time.monotonic() - self._started_s:7.1f} s  {text}", flush=True)

    def _violated(self, text: str) -> None:
        self.say(f"VIOLATED: {text}")
        self.violations.append(text)

    def _edge(self, part: Callable[..., None], *args: object) -> None:
        try:
            part(*args)
        except BaseException:  # noqa: BLE001 - the edge of a thread: the run has to know
            self._violated(f"{part.__name__}:\n{traceback.format_exc()}")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="twolane-soak-"))
    yield path
    shutil.rmtree(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things break")
    parser.add_argument("--seed", type=int, default=None, help="decides the faults; without one a new one is drawn")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"soak of {options.minutes:g} minutes, seed {seed}", flush=True)
    with _folder() as folder:
        with (
            opened_stack(folder, knobs="latency_ms = 10", chunk_items="50") as stack,
            Proxy(stack.server.port) as proxy,
        ):
            soak = Soak(stack, proxy, seed)
            try:
                soak.run(options.minutes)
            finally:
                for name, count in sorted(soak.counts.items()):
                    print(f"{count:8d}  {name}")
            if soak.violations:
                kept = folder.with_name(f"{folder.name}-logs")
                shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("server"))
                print(f"soak FAILED: seed {seed}, {len(soak.violations)} violations; the processes' logs: {kept}")
                return 1
        print(f"soak passed: seed {seed}, {soak.counts['jobs']} jobs, {soak.counts['items']} items, nothing lost")
        return 0


if __name__ == "__main__":
    sys.exit(main())
