"""Model cards that only the benchmarks have: fake models of other sizes and speeds, random weights.

Owns the catalogue file that is given to stacks and engines under measurement.
"""

from pathlib import Path

from benchmarks.processes import BUILD

__all__ = ["FAKE_SLOW", "FAKE_WIDE", "fake_cards"]

FAKE_WIDE, FAKE_SLOW = "fake-384", "fake-slow"

_FAKE = """
[[models]]
name = "{name}"
description = "For benchmarks."
source = "none:"
family = "fake"
backend = "fake"
capabilities = ["dense"]
dimension = {dimension}
max_tokens = 512
pooling = "mean"
knobs = {{ {knobs} }}
"""


def fake_cards() -> Path:
    """Write the catalogue with the fake models and return its path: one as wide as MiniLM, one slow to be killed in."""
    path = (BUILD / "fake-cards.toml").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    wide = _FAKE.format(name=FAKE_WIDE, dimension=384, knobs="")
    slow = _FAKE.format(name=FAKE_SLOW, dimension=64, knobs="latency_ms = 400")
    path.write_text(wide + slow)
    return path
