"""Passes that are started before the last one is done give what they give alone, with the real MiniLM."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from config.catalog import load_catalog
from config.settings import Settings
from tests.support.corpus import passages
from workers.models.backends.openvino import OpenVinoBackend
from workers.models.backends.torch import TorchBackend
from workers.models.loaded import LoadedModel
from workers.models.registry import load_models
from workers.models.tokenizing.tokenizer import Tokens

MINILM = "all-MiniLM-L6-v2"
ROOT = Path(__file__).parents[2]
Parts = tuple[TorchBackend | OpenVinoBackend, list[Tokens]]


def load(backend: str, device: str = "cpu") -> LoadedModel:
    card = load_catalog().find(MINILM)
    assert card is not None
    settings = Settings(_env_file=None, device=device, threads=2, models_dir=ROOT / "data" / "models")
    return load_models([card.model_copy(update={"backend": backend, "dtype": "float32"})], settings)[MINILM]


ON_CPU = ["openvino-cpu", "torch-cpu"]


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> Parts:
    model = load(*request.param.split("-"))
    assert isinstance(model.backend, TorchBackend | OpenVinoBackend)
    return model.backend, sorted((one.tokens for one in model.tokenizer.encode(passages(12), "end")), key=len)


@pytest.mark.parametrize("loaded", [*ON_CPU, pytest.param("torch-cuda", marks=pytest.mark.gpu)], indirect=True)
def test_two_passes_under_way_and_one_between_them_keep_apart(loaded: Parts) -> None:
    backend, rows = loaded
    parts = [rows[:3], rows[3:7], rows[7:12]]
    alone = [backend.run(part) for part in parts]
    for _ in range(3):
        first, second = backend.start(parts[0]), backend.start(parts[1])
        values = [first(), backend.run(parts[2]), second()]
        for got, expected in zip(values, (alone[0], alone[2], alone[1]), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("loaded", ON_CPU, indirect=True)
def test_a_pass_that_fails_leaves_the_device_to_others(loaded: Parts) -> None:
    backend, rows = loaded
    under_way = backend.start(rows[:4])
    too_long = Tokens(np.resize(rows[-1].ids, 5000))
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        backend.start([*rows[:3], too_long])()
    np.testing.assert_allclose(under_way(), backend.run(rows[:4]), atol=1e-5)


def test_bulk_passes_and_latency_batches_on_borrowed_streams_keep_apart() -> None:
    model = load("openvino")
    rows = sorted((one.tokens for one in model.tokenizer.encode(passages(16), "end")), key=len)
    streams, latency_stream = model.backend, model.backend.latency_stream
    assert streams.pipeline is not None
    assert latency_stream is not None
    expected = streams.run(rows)
    done = threading.Event()

    def keep_borrowing() -> int:
        runs = 0
        while not done.is_set():
            np.testing.assert_allclose(latency_stream.run(rows), expected, atol=1e-5)
            runs += 1
        return runs

    with ThreadPoolExecutor(1) as pool:
        borrower = pool.submit(keep_borrowing)
        try:
            for _ in range(40):
                waiting = [streams.pipeline.start(part) for part in (rows[:2], rows[2:5])]
                np.testing.assert_allclose(np.concatenate([wait() for wait in waiting]), expected[:5], atol=1e-5)
        finally:
            done.set()
        assert borrower.result(30)
    np.testing.assert_allclose(latency_stream.run(rows), expected, atol=1e-5)


def test_only_a_device_that_computes_on_its_own_is_given_work_ahead() -> None:
    assert load("torch").backend.pipeline is None
    streams = load("openvino").backend
    assert streams.pipeline is streams
    assert streams.latency_stream is not None
    assert streams.latency_stream.pipeline is None
