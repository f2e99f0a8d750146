"""The packed backend on a card: flash attention, recorded passes, and what is left of memory. `pytest -m gpu`."""

import itertools
import threading
from pathlib import Path

import pytest
import torch

from config.catalog import ModelCard
from config.settings import Settings
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint
from tests.support.packed import load, make_rows, run, varied_texts
from workers.engine import DeviceEngine
from workers.models.backends.packed.attention import CAUSAL, FULL, attend_by_flash, attend_row_by_row
from workers.models.backends.packed.flat import Spans
from workers.models.backends.packed.graphs import GraphStream
from workers.models.backends.packed.parity import disagreement
from workers.models.loaded import LoadedModel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
TEXTS = varied_texts(200)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    """The same checkpoint on the CPU in float32 and packed on the card, in the precision that it chooses."""
    name: str = request.param
    card = ModelCard(**make_checkpoint(name, Path(tmp_path_factory.mktemp("checkpoint")) / name))
    return load(card, "torch"), load(card, "packed", "auto", "cuda")


def bound(model: LoadedModel) -> float:
    half = {"float16": 1e-3, "bfloat16": 1e-2}[model.backend.dtype]
    return half if model.backend.dimension is not None else 10 * half


def test_the_card_gives_the_values_of_the_cpu(pair: tuple[LoadedModel, LoadedModel]) -> None:
    exact, packed = pair
    assert (packed.backend.kind, packed.fallback) == ("packed", "")
    rows = make_rows(exact, TEXTS)
    expected = run(exact.backend, rows)
    assert disagreement(expected, packed.backend.run(rows)) <= bound(packed)
    assert disagreement(expected[:40], packed.backend.run_exact(rows[:40])) <= bound(packed)


def test_recorded_passes_have_the_values_of_bulk_passes_that_run_beside_them(
    pair: tuple[LoadedModel, LoadedModel],
) -> None:
    _, packed = pair
    stream = packed.backend.latency_stream
    assert isinstance(stream, GraphStream)
    rows = make_rows(packed, TEXTS)
    expected = run(packed.backend, rows)
    stop, wrong = threading.Event(), list[float]()

    def keep_busy() -> None:
        while not stop.is_set():
            wrong.append(disagreement(expected, packed.backend.run(rows)))

    bulk = threading.Thread(target=keep_busy)
    bulk.start()
    try:
        for size in (1, 3, 8, 40):
            assert disagreement(expected, run(stream, rows, size)) <= bound(packed)
    finally:
        stop.set()
        bulk.join()
    assert max(wrong) <= bound(packed)


@pytest.mark.parametrize("window", [FULL, CAUSAL, (64, 64)])
@pytest.mark.parametrize("key_heads", [8, 2])
def test_flash_attention_is_attention_row_by_row(window: tuple[int, int], key_heads: int) -> None:
    torch.manual_seed(0)
    lengths = [1, 0, 17, 300, 0, 64]
    edges = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")
    like = {"dtype": torch.float16, "device": "cuda"}
    query, key, value = (torch.randn(sum(lengths), heads, 64, **like) for heads in (8, key_heads, key_heads))
    spans = Spans(edges, 512), Spans(edges, 512)
    found = attend_by_flash(query, key, value, spans, window)
    torch.testing.assert_close(found, attend_row_by_row(query, key, value, spans, window), atol=5e-3, rtol=5e-3)


def test_warming_up_leaves_no_more_memory_than_is_in_use(pair: tuple[LoadedModel, LoadedModel]) -> None:
    _, packed = pair
    settings = Settings(_env_file=None, device="cuda")
    with DeviceEngine(settings, {packed.card.name: packed}) as engine:
        assert engine.warm_up() == {}
    spare = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    assert spare < 512 * 2**20


def test_no_attention_back_end_of_cudnn_is_on(pair: tuple[LoadedModel, LoadedModel]) -> None:
    assert pair[1].backend.kind == "packed"
    assert not torch.backends.cuda.cudnn_sdp_enabled()
