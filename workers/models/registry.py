"""From cards to loaded models: which backend runs a model on this device, and in which precision.

Owns that choice. Backends are imported late, so that a worker pays only for what its models need.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError
from workers.models.base import LoadedModel
from workers.models.fetch import fetch
from workers.models.fingerprint import make_fingerprint
from workers.models.weights import load_weights

__all__ = ["load_models"]


def load_models(cards: Iterable[ModelCard], settings: Settings) -> dict[str, LoadedModel]:
    """Load every card's model on this worker's device, by card name.

    Raises:
        ConfigError: a model cannot be found, loaded or run here.
    """
    return {card.name: _loader(card)(card, settings) for card in cards}


def _loader(card: ModelCard) -> Callable[[ModelCard, Settings], LoadedModel]:
    if card.backend == "fake" or card.family == "fake":
        return _load_fake
    if card.backend in {"auto", "torch"}:
        return _load_torch
    raise ConfigError(f"model {card.name}: unknown backend {card.backend!r}")


def _load_fake(card: ModelCard, settings: Settings) -> LoadedModel:
    del settings
    fake = importlib.import_module("workers.models.backends.fake")
    return LoadedModel(
        card=card,
        tokenizer=fake.FakeTokenizer(card),
        backend=fake.FakeBackend(card),
        fingerprint=make_fingerprint(card, None, card.pooling or "", "float32"),
    )


def _load_torch(card: ModelCard, settings: Settings) -> LoadedModel:
    device, dtype = _place(card, settings)
    folder = fetch(card, settings)
    weights = load_weights(card, folder, dtype)
    backend = importlib.import_module("workers.models.backends.torch")
    return LoadedModel(
        card=card,
        tokenizer=weights.tokenizer,
        backend=backend.TorchBackend(weights, device, dtype),
        fingerprint=make_fingerprint(card, folder, weights.pooling, dtype),
    )


def _place(card: ModelCard, settings: Settings) -> tuple[str, str]:
    """Return the device and the precision for torch. A launcher shows each worker one device only."""
    torch: Any = importlib.import_module("torch")
    device = settings.device.split(",")[0]
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = "cuda:0"
    wish = card.dtype if card.dtype != "auto" else settings.dtype
    if wish != "auto":
        return device, wish
    if device == "cpu":
        return device, "float32"
    return device, "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
