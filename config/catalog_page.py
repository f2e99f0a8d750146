"""The page of the built-in models, written from their cards: `docs/catalogue.md`.

Owns the table and the memory that weights take. The cards are in `config/models.toml`.
"""

from config.catalog import ModelCard, load_catalog

__all__ = ["count_parameters", "render_catalog_page"]

_UNITS = {"M": 1e6, "B": 1e9}
_HEADINGS = (
    "name",
    "also called",
    "gives",
    "dimension",
    "tokens",
    "parameters",
    "memory, half / float32",
    "before queries",
    "licence",
)
_HALF_BYTES, _SINGLE_BYTES = 2, 4


def count_parameters(card: ModelCard) -> float:
    """Return how many numbers the weights are, of `22M` or `0.6B`; 0: the card does not say.

    Raises:
        ValueError: it says something else.
    """
    if not card.parameters:
        return 0.0
    return float(card.parameters[:-1]) * _UNITS[card.parameters[-1]]


def render_catalog_page() -> str:
    """Return `docs/catalogue.md`: one row for each card."""
    lines = [
        "# Catalogue",
        "",
        "The built-in models, by name; `TWOLANE_MODELS` and callers may use any of their names, in any case. This page",
        "is written by `make docs` from `config/models.toml`. Memory is that of the weights alone, in half precision",
        "(the default on GPUs) and in float32; passes need more beside it. How a model is read, and what is refused:",
        "[models.md](models.md).",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|---" * len(_HEADINGS) + "|",
    ]
    cards = sorted((card for card in load_catalog() if card.parameters), key=lambda card: card.name.lower())
    return "\n".join([*lines, *map(_row, cards)]) + "\n"


def _row(card: ModelCard) -> str:
    aliases = ", ".join(f"`{alias}`" for alias in card.aliases)
    gives = ", ".join(card.capabilities) + (f" ({card.rerank_by})" if card.capabilities == ("rerank",) else "")
    cells = (
        f"`{card.name}`",
        aliases,
        gives,
        str(card.dimension or "-"),
        str(card.max_tokens or "as its folder says"),
        card.parameters,
        f"{_memory(card, _HALF_BYTES)} / {_memory(card, _SINGLE_BYTES)}",
        _prompt(card),
        card.licence or "not stated",
    )
    return "| " + " | ".join(cells) + " |"


def _memory(card: ModelCard, number_bytes: int) -> str:
    gigabytes = count_parameters(card) * number_bytes / 2**30
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1024:.0f} MB"


def _prompt(card: ModelCard) -> str:
    """Return what stands before a query; `…` stands for its text."""
    if not card.query_instruction:
        return "-"
    if card.family == "llm-reranker":
        return f"in its template: {card.query_instruction}"
    written = card.query_instruction_format.format(card.query_instruction, "…")
    return "`" + written.replace("\n", "\\n").replace("|", "\\|") + "`"
