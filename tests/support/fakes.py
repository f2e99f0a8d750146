"""Fake models for tests of the engine: the shipped fake backend, with a gate and a record of its passes."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.catalog import ModelCard
from workers.models.backends.fake import FakeBackend, FakeTokenizer
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["GatedBackend", "fake_card", "fake_model", "write_fake_card"]

CARD = """
[[models]]
name = "fake"
source = "none:"
family = "fake"
backend = "fake"
capabilities = ["dense", "rerank"]
dimension = 16
matryoshka_from = 1
max_tokens = 512
pooling = "mean"
knobs = {{ {knobs} }}
"""


def write_fake_card(folder: Path, knobs: str) -> Path:
    """Write a catalogue with the fake model for other processes; the knobs are TOML."""
    path = folder / "models.toml"
    path.write_text(CARD.format(knobs=knobs), "utf-8")
    return path


def fake_card(name: str = "fake", **fields: Any) -> ModelCard:
    """Return a card of the fake family; the knobs come as one dictionary."""
    return ModelCard(
        **{
            "name": name,
            "source": "none:",
            "family": "fake",
            "backend": "fake",
            "capabilities": ("dense", "rerank"),
            "rerank_by": "similarity",
            "dimension": 16,
            "matryoshka_from": 1,
            "max_tokens": 64,
            "pooling": "mean",
            **fields,
        }
    )


class GatedBackend(FakeBackend):
    """Holds every pass until the gate is open, and keeps the first token ids and the number of rows of each."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.passes: list[list[Tokens]] = []
        self.broken: Exception | None = None

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Record, wait for the gate, then compute or fail."""
        self.passes.append(list(rows))
        self.entered.set()
        assert self.gate.wait(30)
        if self.broken is not None:
            raise self.broken
        return super().run(rows)


def fake_model(
    card: ModelCard | None = None, *, gated: bool = False, backend: FakeBackend | None = None
) -> LoadedModel:
    """Return a loaded fake model; a gated one has a `GatedBackend`."""
    card = card or fake_card()
    backend = backend or (GatedBackend(card) if gated else FakeBackend(card))
    return LoadedModel(card, FakeTokenizer(card), backend, f"{card.slug}:test")
