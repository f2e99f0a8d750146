"""What a model wants before a text. Owns the reading of sentence-transformers' prompts into the fields of a card."""

import re
from collections.abc import Mapping
from typing import Any

from config.catalog import ModelCard
from tasks.errors import ConfigError

__all__ = ["read_prompts"]

# The names under which sentence-transformers looks for what its `encode_document` puts before a text.
_DOCUMENT_NAMES = ("document", "passage", "corpus")
# A prompt of one of these forms holds an instruction that callers may replace by their own.
_FORMS = (
    (re.compile(r"Instruct: (.+)\nQuery:( ?)", re.DOTALL), "Instruct: {}\nQuery:"),
    (re.compile(r"<instruct>(.+)\n<query>( ?)", re.DOTALL), "<instruct>{}\n<query>"),
)


def read_prompts(card: ModelCard, stated: Mapping[str, Any]) -> dict[str, str]:
    """Return the instructions of a card: its own, else those of the folder.

    Args:
        card: goes first.
        stated: config_sentence_transformers.json.

    Raises:
        ConfigError: the folder's default prompt is not among its prompts.
    """
    prompts = {str(key): str(text) for key, text in (stated.get("prompts") or {}).items() if text is not None}
    default = stated.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ConfigError(
            f"model {card.name}: its default prompt {default} is not among {', '.join(prompts) or 'none'}"
        )
    document = next((prompts[name] for name in _DOCUMENT_NAMES if prompts.get(name)), "")
    found = {
        "document_instruction": card.document_instruction or document,
        "default_instruction": card.default_instruction or (prompts[default] if default is not None else ""),
    }
    if card.query_instruction:
        if card.query_instruction_format != "{}{}":
            found = {"document_instruction": card.document_instruction, "default_instruction": card.default_instruction}
        return found
    if any(found.values()):
        # With one written-out form for all of them.
        return found | {"query_instruction": prompts.get("query", ""), "query_instruction_format": "{}{}"}
    return found | _split(prompts.get("query", ""), card.query_instruction_format)


def _split(prompt: str, form: str) -> dict[str, str]:
    for pattern, known in _FORMS:
        if match := pattern.fullmatch(prompt):
            return {"query_instruction": match[1], "query_instruction_format": f"{known}{match[2]}{{}}"}
    return {"query_instruction": prompt, "query_instruction_format": form if not prompt else "{}{}"}
