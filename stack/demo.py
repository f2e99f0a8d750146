"""`python -m stack.demo`: the whole product on real text in about a minute, explained as it runs.

Owns the story and how it looks. Everything in it is real: the processes, the model, the corpus and the answers.
"""

import contextlib
import io
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from config.settings import Settings
from stack.passages import Passage, gather_passages
from stack.plan import Plan, StackError, make_plan
from stack.running import Stack

__all__ = ["main"]

MODEL = "all-MiniLM-L6-v2"
PASSAGES = 5_000
WIDTH = 80
SMALL_TEXTS = ("A lighthouse warns ships.", "The beacon on the cliff guides sailors.", "Bread needs yeast.")
RERANK_QUERY = "What makes the sea rise and fall?"
RERANK_DOCUMENTS = (
    "Yeast makes the dough rise.",
    "The moon pulls on the oceans and causes the tides.",
    "Sailors fear the wind more than the waves.",
)
QUESTIONS = (
    "How do I make a temporary folder that cleans up after itself?",
    "How do I find the three largest items of a list?",
    "How do I tell whether a year is a leap year?",
    "How do I wrap long lines of text to a given width?",
    "How do I ask for a password without showing it?",
)
HITS = 2
_ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
_POLL_S = 0.2
_SMALL_EVERY_S = 0.4


class _Story:
    """Prints the demo, never wider than 80 columns."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.console.width = min(self.console.width, WIDTH)
        self._step = 0

    def step(self, title: str) -> None:
        self._step += 1
        self.console.print()
        self.console.print(f"[bold cyan]{self._step}[/]  [bold]{title}[/]")

    def say(self, text: str) -> None:
        self.console.print(f"   {text}", soft_wrap=False)

    def done(self, text: str) -> None:
        self.console.print(f"   [green]✓[/] {text}")

    def row(self, left: str, right: str, *, best: bool = False) -> None:
        """Print one line of two columns, cut to the width."""
        line = Text(f"    {left}  ", style="bold green" if best else "dim")
        line.append(right, style="" if best else "dim")
        line.truncate(self.console.width, overflow="ellipsis")
        self.console.print(line)


class _Bystander:
    """Sends a small request now and then while a corpus is worked off, and keeps how long each took."""

    def __init__(self, url: str) -> None:
        self.took_ms: list[float] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.wait(_SMALL_EVERY_S):
                with contextlib.suppress(httpx.HTTPError):
                    self.took_ms.append(_timed_ms(client, "/v1/embeddings", {"model": MODEL, "input": QUESTIONS[0]})[1])


def tell(stack: Stack, story: _Story, client: httpx.Client) -> None:
    """Run the demo on a started stack.

    Raises:
        RuntimeError: something did not come out as it should.
        httpx.HTTPError: the web server refused or did not answer.
    """
    _show_small_requests(story, client)
    passages = _gather(story)
    vectors = _embed_corpus(story, client, stack, passages)
    _answer_questions(story, client, passages, vectors)
    _show_addresses(story, stack.plan)


def _show_small_requests(story: _Story, client: httpx.Client) -> None:
    story.step("Small requests, answered at once (interactive lane)")
    _timed_ms(client, "/v1/embeddings", {"model": MODEL, "input": "first"})  # opens the connections
    body, took_ms = _timed_ms(client, "/v1/embeddings", {"model": MODEL, "input": list(SMALL_TEXTS)})
    vectors = np.array([item["embedding"] for item in body["data"]])
    start = ", ".join(f"{value:.3f}" for value in vectors[0][:4])
    story.say(f"POST /v1/embeddings   {len(SMALL_TEXTS)} texts, {vectors.shape[1]} numbers each, {took_ms:.0f} ms")
    story.row("     ", f"“{SMALL_TEXTS[0]}” = [{start}, …]")
    for place, score in enumerate(vectors[1:] @ vectors[0]):
        story.row(f"{score:5.2f}", f"similar to “{SMALL_TEXTS[1 + place]}”", best=place == 0)
    request = {"model": MODEL, "query": RERANK_QUERY, "documents": list(RERANK_DOCUMENTS)}
    body, took_ms = _timed_ms(client, "/v1/rerank", request)
    story.say(f"POST /v1/rerank       “{RERANK_QUERY}”, {took_ms:.0f} ms")
    for place, result in enumerate(body["results"]):
        story.row(f"{result['relevance_score']:5.2f}", RERANK_DOCUMENTS[result["index"]], best=place == 0)


def _gather(story: _Story) -> list[Passage]:
    story.step("A corpus, queued as a job (bulk lane)")
    started_s = time.perf_counter()
    passages = gather_passages(PASSAGES)
    took_s = time.perf_counter() - started_s
    story.say(f"{len(passages):,} passages of documentation found in this Python, {took_s:.1f} s")
    return passages


def _embed_corpus(
    story: _Story, client: httpx.Client, stack: Stack, passages: Sequence[Passage]
) -> NDArray[np.float32]:
    lines = b"\n".join(orjson.dumps({"id": passage.name, "text": passage.text}) for passage in passages)
    started_s = time.perf_counter()
    answer = client.post(
        "/v1/jobs",
        params={"type": "embeddings", "model": MODEL},
        content=lines,
        headers={"Content-Type": "application/x-ndjson"},
    )
    job = _checked(answer).json()
    story.say(f"POST /v1/jobs         {answer.status_code}, all of it queued in {_ms_since(started_s):.0f} ms")
    story.row("  job", job["id"])
    with _Bystander(stack.plan.url) as bystander:
        job = _follow(story, client, stack, job)
    took_s = time.perf_counter() - started_s
    counts = job["counts"]
    if job["status"] != "succeeded" or counts["completed"] != len(passages):
        raise RuntimeError(f"the job ended {job['status']} with {counts}")
    story.done(f"{counts['completed']:,} passages, {job['tokens']:,} tokens in {took_s:.1f} s; none lost, none twice")
    if bystander.took_ms:
        middle = statistics.median(bystander.took_ms)
        count = len(bystander.took_ms)
        story.done(f"meanwhile {count} small requests were answered, in {middle:.0f} ms at the median")
    return _fetch_vectors(story, client, job)


def _follow(story: _Story, client: httpx.Client, stack: Stack, job: dict[str, Any]) -> dict[str, Any]:
    columns = (
        TextColumn("  "),
        BarColumn(bar_width=22),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("[dim]{task.fields[left]}"),
    )
    started_s = time.perf_counter()
    with Progress(*columns, console=story.console) as progress:
        task = progress.add_task("", total=job["counts"]["total"], rate="", left="starting")
        while job["status"] not in _ENDED:
            stack.poll()
            time.sleep(_POLL_S)
            job = _checked(client.get(f"/v1/jobs/{job['id']}")).json()
            done, total = job["counts"]["completed"] + job["counts"]["failed"], job["counts"]["total"]
            rate = done / (time.perf_counter() - started_s)
            left = f"{(total - done) / rate:.0f} s left" if rate else "starting"
            progress.update(task, completed=done, rate=f"{rate:,.0f} items/s", left=left)
    return job


def _fetch_vectors(story: _Story, client: httpx.Client, job: dict[str, Any]) -> NDArray[np.float32]:
    started_s = time.perf_counter()
    answer = _checked(client.get(f"/v1/jobs/{job['id']}/results", params={"format": "npy"}))
    vectors: NDArray[np.float32] = np.load(io.BytesIO(answer.content))
    shape = " x ".join(f"{size:,}" for size in vectors.shape)
    megabytes = len(answer.content) / 1e6
    story.done(f"fetched as .npy: {shape} {vectors.dtype}, {megabytes:.1f} MB in {_ms_since(started_s):.0f} ms")
    return vectors


def _answer_questions(
    story: _Story, client: httpx.Client, passages: Sequence[Passage], vectors: NDArray[np.float32]
) -> None:
    story.step("Five questions over that corpus")
    for question in QUESTIONS:
        body, took_ms = _timed_ms(client, "/v1/embeddings", {"model": MODEL, "input": question})
        scores = vectors @ np.array(body["data"][0]["embedding"], np.float32)
        story.say(f"[bold]{question}[/]  [dim]{took_ms:.0f} ms[/]")
        for place, index in enumerate(np.argsort(-scores)[:HITS]):
            name, _, words = passages[index].text.partition(": ")
            story.row(f"{scores[index]:5.2f}", f"{name}: {words}", best=place == 0)


def _show_addresses(story: _Story, plan: Plan) -> None:
    story.step("What was running")
    rows = {
        "API": f"{plan.url}/v1",
        "API docs": f"{plan.url}/docs",
        "Console": f"{plan.url}/console",
        "Flower": f"{plan.flower_url}  user {plan.settings.flower_user}",
        "Data": str(plan.settings.data_dir),
    }
    for name, value in rows.items():
        story.say(f"{name:<9} {value}")


def _timed_ms(client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    started_s = time.perf_counter()
    answer = _checked(client.post(path, json=body))
    took_ms = _ms_since(started_s)
    return answer.json(), took_ms


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        raise RuntimeError(f"{answer.request.method} {answer.request.url} answered {answer.status_code}: {answer.text}")
    return answer


def _ms_since(started_s: float) -> float:
    return (time.perf_counter() - started_s) * 1000


@contextlib.contextmanager
def _opened_stack(story: _Story) -> Iterator[Stack]:
    """Start a stack on free ports with a private server; in the data folder, or beside it where that is in use."""
    settings = Settings()
    private = {"redis_url": "", "models": (MODEL,), "port": 0, "flower_port": 0, "keys_file": None}
    settings = settings.model_copy(update=private)
    with tempfile.TemporaryDirectory(prefix="twolane-demo-") as folder, contextlib.ExitStack() as open_:
        log = open_.enter_context((Path(folder) / "log").open("w+", encoding="utf-8"))
        stack = _start(settings, Path(folder), log)
        try:
            _wait(story, stack)
            yield stack
        except (RuntimeError, httpx.HTTPError) as error:
            log.seek(0)
            raise RuntimeError(f"{error}\n\nThe end of the log:\n{log.read()[-3000:]}") from error
        finally:
            with story.console.status("   stopping"):
                stack.stop()


def _start(settings: Settings, folder: Path, log: io.TextIOBase) -> Stack:
    def sink(name: str, line: str) -> None:
        with contextlib.suppress(ValueError):  # closed at the end
            log.write(f"{name:<7} {line}\n")
            log.flush()

    try:
        return Stack(make_plan(settings), sink).start()
    except StackError:
        return Stack(make_plan(settings.model_copy(update={"data_dir": folder / "data"})), sink).start()


def _wait(story: _Story, stack: Stack) -> None:
    story.step("The stack: embedded server, web, one worker per device, Flower")
    started_s = time.perf_counter()
    with story.console.status("   starting") as status:
        stack.wait_until_ready(
            lambda passed_s, missing: status.update(f"   waiting for {missing}, {passed_s:.0f} s"), lambda: False
        )
    story.done(f"all ready after {time.perf_counter() - started_s:.1f} s, {MODEL} loaded and warm")


def main() -> int:
    """Run the demo; return the exit code."""
    story = _Story()
    started_s = time.perf_counter()
    # A polite end of the terminal or of `make` runs the same way out as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    story.console.print("\n[bold]Twolane[/]  embeddings and reranking: small requests at once, corpora as jobs")
    try:
        with _opened_stack(story) as stack, httpx.Client(base_url=stack.plan.url, timeout=60) as client:
            tell(stack, story, client)
    except KeyboardInterrupt:
        story.console.print("\n   stopped")
        return 130
    except (RuntimeError, ValidationError, httpx.HTTPError) as error:
        print(f"\nThe demo did not work: {error}", file=sys.stderr)
        return 1
    story.console.print()
    story.done(f"everything stopped after {time.perf_counter() - started_s:.0f} s; now yours: [bold]make serve[/]")
    story.console.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
