"""What the packed backend does not know, or computes otherwise, is left to the padded one, which says why."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from config.catalog import ModelCard
from config.settings import Settings
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint
from tests.support.packed import load, weights_of
from workers.models.backends.packed import bert
from workers.models.backends.packed.architectures import make_packed_model
from workers.models.backends.packed.attention import CAUSAL
from workers.models.backends.packed.choose import pack
from workers.models.backends.packed.layers import UnknownModelError
from workers.models.backends.packed.parity import disagreement
from workers.models.backends.torch import TorchBackend
from workers.models.registry import load_models
from workers.models.weights import Weights


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: ModelCard(**make_checkpoint(name, root / name)) for name in ARCHITECTURES}


def transformer(weights: Weights) -> Any:
    return weights.module.get_submodule("transformer")


def add_dense(weights: Weights) -> None:
    weights.module.add_module("dense", nn.Linear(64, 64))


def add_adapter(weights: Weights) -> None:
    class Adapted(nn.Linear):
        """A layer with something besides its weight."""

    transformer(weights).encoder.layer[1].output.dense = Adapted(128, 64)


def add_weight(weights: Weights) -> None:
    transformer(weights).encoder.layer[0].register_parameter("scale", nn.Parameter(torch.ones(1)))


def be_relative(weights: Weights) -> None:
    transformer(weights).config.position_embedding_type = "relative_key"


def be_another_architecture(weights: Weights) -> None:
    transformer(weights).config.model_type = "mpnet"


def be_a_decoder(weights: Weights) -> None:
    transformer(weights).config.is_decoder = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_dense, "Embedder with dense, steps, transformer"),
        (add_adapter, "is a Adapted"),
        (add_weight, "not known: encoder.layer.0.scale"),
        (be_relative, "relative"),
        (be_another_architecture, "architecture mpnet"),
        (be_a_decoder, "decoder"),
    ],
)
def test_a_model_that_is_not_known_in_every_detail_is_computed_with_padding(
    change: Any, words: str, cards: dict[str, ModelCard], caplog: pytest.LogCaptureFixture
) -> None:
    weights = weights_of(cards["bert"])
    padded = TorchBackend(weights, "cpu", "float32")
    change(weights)
    with caplog.at_level(logging.WARNING):
        backend, reason = pack(cards["bert"], weights, padded)
    assert backend is padded
    assert words in reason
    assert "computed with padding" in caplog.text
    assert words in caplog.text


@pytest.mark.parametrize(("name", "field"), [("qwen2", "layer_types"), ("bert-reranker", "num_labels")])
def test_windows_in_a_decoder_and_several_labels_are_not_known(
    name: str, field: str, cards: dict[str, ModelCard]
) -> None:
    weights = weights_of(cards[name])
    config = transformer(weights).config
    setattr(config, field, ["sliding_attention"] * 2 if field == "layer_types" else 3)
    with pytest.raises(UnknownModelError):
        make_packed_model(weights.module, weights.pooling)


def test_a_forward_pass_that_gives_other_values_is_not_used(
    cards: dict[str, ModelCard], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bert, "FULL", CAUSAL)
    with caplog.at_level(logging.WARNING):
        model = load(cards["bert-mean"], "packed")
    assert model.backend.kind == "torch"
    assert model.fallback.startswith("computed with padding: its values differ")
    assert "differ from the padded ones by" in caplog.text


def test_a_kernel_that_this_card_does_not_have_means_padding(
    cards: dict[str, ModelCard], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(bert, "attend", fail)
    with caplog.at_level(logging.WARNING):
        assert load(cards["bert"], "packed").backend.kind == "torch"
    assert "Ampere" in caplog.text


@pytest.mark.parametrize(
    ("settings", "backend", "kind"),
    [
        ({"packed": "on"}, "auto", "packed"),
        ({"packed": "on"}, "torch", "torch"),
        ({"packed": "off"}, "packed", "packed"),
        ({}, "torch", "torch"),
    ],
)
def test_the_setting_is_for_cards_that_leave_the_backend_open(
    settings: dict[str, Any], backend: str, kind: str, cards: dict[str, ModelCard]
) -> None:
    chosen = Settings(_env_file=None, device="cpu", dtype="float32", threads=2, **settings)
    card = cards["bert"].model_copy(update={"backend": backend})
    assert load_models([card], chosen)["bert"].backend.kind == kind


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([[1, 0], [0, 1], [5, 5]], 0.0),
        ([[0.8, 0.6], [0, 1], [0, 0]], 0.2),
        ([[1, 0], [0, 0], [0, 0]], 1.0),
        ([[1, 0], [0, float("nan")], [0, 0]], float("inf")),
    ],
)
def test_the_disagreement_of_vectors_is_that_of_the_worst_which_has_a_length(
    got: list[list[float]], expected: float
) -> None:
    reference = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    assert disagreement(reference, np.array(got, np.float32)) == pytest.approx(expected, abs=1e-6)


def test_the_disagreement_of_scores_leaves_out_what_overflows_in_the_reference() -> None:
    reference = np.array([0.0, 0.5, np.inf], np.float32)
    assert disagreement(reference, np.array([0.1, 0.2, 0.3], np.float32)) == pytest.approx(0.3, abs=1e-6)
    assert disagreement(reference[2:], np.array([0.3], np.float32)) == float("inf")
