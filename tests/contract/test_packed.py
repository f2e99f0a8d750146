"""The packed backend gives what the padded one gives, for every architecture that it knows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import Work
from tasks.errors import OutOfMemory
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint
from tests.support.packed import load, make_rows, run, varied_texts, weights_of
from workers.engine import DeviceEngine
from workers.models.backends.packed import bert
from workers.models.backends.packed.architectures import make_packed_model
from workers.models.backends.packed.choose import pack
from workers.models.backends.torch import TorchBackend
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

TEXTS = varied_texts(200)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: ModelCard(**make_checkpoint(name, root / name)) for name in ARCHITECTURES}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, cards: dict[str, ModelCard]) -> tuple[LoadedModel, LoadedModel]:
    """The same checkpoint padded and packed, in float32."""
    padded, packed = (load(cards[request.param], backend) for backend in ("torch", "packed"))
    assert (padded.backend.kind, packed.backend.kind) == ("torch", "packed")
    return padded, packed


def differences(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    if left.ndim == 1:
        return np.abs(left.astype(np.float64) - right)
    return np.asarray(1 - (left.astype(np.float64) * right).sum(1))


def test_200_varied_texts_have_the_values_of_the_padded_pass(pair: tuple[LoadedModel, LoadedModel]) -> None:
    padded, packed = pair
    rows = make_rows(padded, TEXTS)
    expected = run(padded.backend, rows)
    np.testing.assert_allclose(run(packed.backend, rows), expected, atol=1e-5)
    # All lengths at once, as no padded pass would have them.
    np.testing.assert_allclose(packed.backend.run(rows), expected, atol=1e-5)
    spread = expected if expected.ndim == 1 else expected @ expected[40]
    assert np.ptp(spread) > 0.05, "the model tells texts apart, so equality means something"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_near_to_float32_as_with_padding(
    dtype: str, cards: dict[str, ModelCard], pair: tuple[LoadedModel, LoadedModel]
) -> None:
    exact, _ = pair
    rows = make_rows(exact, TEXTS[:60])
    expected = run(exact.backend, rows)
    worst = [
        float(np.max(differences(run(load(cards[exact.card.name], kind, dtype).backend, rows), expected)))
        for kind in ("torch", "packed")
    ]
    assert worst[1] <= 2 * worst[0] + 1e-4


def test_the_engine_gives_the_same_over_a_packed_model(pair: tuple[LoadedModel, LoadedModel]) -> None:
    padded, packed = pair
    name, settings = padded.card.name, Settings(_env_file=None)
    scores = padded.card.rerank_by == "cross-encoder"
    work = Work(name, "rerank" if scores else "embeddings", TEXTS[:80], TEXTS[80:160] if scores else None)
    found = []
    for model in (padded, packed):
        with DeviceEngine(settings, {name: model}) as engine:
            found.append(engine.submit(work).result(60).values)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_sparse_and_colbert_vectors_are_those_of_the_padded_pass(exact: bool, cards: dict[str, ModelCard]) -> None:
    padded, packed = (load(cards["bge-m3"], backend).backend.heads for backend in ("torch", "packed"))
    assert padded is not None
    assert packed is not None
    kinds = [("sparse", "colbert"), (), ("sparse",), ("colbert",)]
    rows = [
        replace(row, extras=kinds[at % 4])  # type: ignore[arg-type]
        for at, row in enumerate(make_rows(load(cards["bge-m3"], "torch"), TEXTS[:40]))
    ]
    expected, expected_extras = padded.run_all(rows, exact=exact)
    values, extras = packed.run_all(rows, exact=exact)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    for one, other in zip(extras, expected_extras, strict=True):
        assert one.keys() == other.keys()
        for kind in one:
            for part, reference in zip(one[kind], other[kind], strict=True):
                np.testing.assert_allclose(part, reference, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "packed"])
@pytest.mark.parametrize("name", ["qwen3", "modernbert", "bge-m3"])
def test_an_exact_pass_is_as_good_as_float32_and_leaves_the_weights_as_they_were(
    name: str, backend: str, cards: dict[str, ModelCard]
) -> None:
    half = load(cards[name], backend, "bfloat16")
    rows = make_rows(half, TEXTS[30:40])
    before = half.backend.run(rows)
    exact = half.backend.run_exact(rows)
    np.testing.assert_array_equal(half.backend.run(rows), before)
    # The same rounded weights, held in float32 from the start.
    wide = weights_of(cards[name], "bfloat16")
    for parameter in wide.module.parameters():
        parameter.data = parameter.data.float()
    np.testing.assert_allclose(exact, TorchBackend(wide, "cpu", "float32").run(rows), atol=1e-5)


def test_a_fused_layer_shares_its_memory_with_the_padded_model(cards: dict[str, ModelCard]) -> None:
    weights = weights_of(cards["qwen3"])
    make_packed_model(weights.module, weights.pooling)
    own = weights.module.get_submodule("transformer.layers.0.self_attn")
    storages = {getattr(own, f"{name}_proj").weight.untyped_storage().data_ptr() for name in "qkv"}
    assert len(storages) == 1


def test_modules_behind_the_pooling_are_computed(cards: dict[str, ModelCard]) -> None:
    weights = weights_of(cards["bert-mean"])
    torch.manual_seed(1)
    weights.module.steps.insert(0, nn.Sequential(nn.Linear(64, 64), nn.Tanh()))  # type: ignore[operator, union-attr]
    padded = TorchBackend(weights, "cpu", "float32")
    backend, reason = pack(cards["bert-mean"], weights, padded)
    assert (backend.kind, reason) == ("packed", "")
    rows = make_rows(load(cards["bert-mean"], "torch"), TEXTS[:20])
    np.testing.assert_allclose(backend.run(rows), padded.run(rows), atol=1e-5)


def test_a_full_memory_is_told_from_other_errors(cards: dict[str, ModelCard], monkeypatch: Any) -> None:
    backend = load(cards["bert"], "packed").backend
    with pytest.raises((RuntimeError, IndexError)) as caught:
        backend.run([Tokens(np.full(3, 10_000, np.int32))])
    assert not isinstance(caught.value, OutOfMemory)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(bert, "attend", fail)
    with pytest.raises(OutOfMemory):
        backend.run([Tokens(np.full(3, 5, np.int32))])
