"""Which family a folder belongs to, and whether its head fits.

Owns the decision by architecture and files, and the refusal of heads that would be made up: a model class that finds
no weights for its head starts with random ones, which gives scores that mean nothing. Imports no device library.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.catalog import Family, ModelCard
from tasks.errors import ConfigError
from workers.models.folders.llm_rerankers import LAYERWISE, is_llm_reranker, refuse_lightweight
from workers.models.folders.modules import ModuleList

__all__ = ["HEADS", "check_activation", "check_head", "choose_family"]

# FlagEmbedding's files of bge-m3's heads; it loads both or makes both up.
HEADS = ("sparse_linear.pt", "colbert_linear.pt")

_DECODERS = frozenset(
    [
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "granite",
        "llama",
        "ministral",
        "mistral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5_text",
    ]
)
# transformers has these classes itself by now; what folders of theirs still say of own code is not needed.
_ADOPTED = frozenset(["eurobert", "gte", "modernbert", "nomic_bert"])
_FIX = "name a sequence classification model with one label"


def choose_family(card: ModelCard, folder: Path, config: Mapping[str, Any], modules: ModuleList) -> Family:
    """Return the family of the folder.

    Raises:
        ConfigError: it is none that can be served, or another one than the card says.
    """
    refuse_lightweight(card.name, config)
    _refuse_own_code(card.name, config)
    found = _find_family(card, folder, config, modules)
    if found is None:
        raise ConfigError(f"model {card.name}: {_explain(card, config)}")
    if card.family == "bge-m3" and found != "bge-m3":
        if card.extras:
            message = f"{folder} lacks {' or '.join(HEADS)}, without which it is dense only"
            raise ConfigError(f"model {card.name}: {message}")
        return card.family
    if card.family not in {"auto", found}:
        raise ConfigError(f"model {card.name}: its card says family {card.family}, its folder is of family {found}")
    return found


def check_head(card: ModelCard, config: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Check that a cross-encoder's head gives one score of a pair as it is.

    Args:
        card: for its name.
        config: config.json.
        stated: config_sentence_transformers.json.

    Raises:
        ConfigError: it does not.
    """
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if labels != 1:
        message = f"it is a classifier of {labels} labels, and a reranker has one"
        raise ConfigError(f"model {card.name}: {message}; {_FIX}")
    check_activation(card, config, stated)
    if stated.get("default_prompt_name"):
        raise ConfigError(f"model {card.name}: it puts a prompt before pairs, which is not supported")


def check_activation(card: ModelCard, config: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Check that a score goes through an activation whose order ours keeps.

    Raises:
        ConfigError: it does not.
    """
    older = config.get("sentence_transformers", {}).get("activation_fn")
    activation = stated.get("activation_fn") or older or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    if activation.rpartition(".")[2] not in {"Sigmoid", "Identity"}:
        raise ConfigError(f"model {card.name}: its scores go through {activation}, which is not supported")


def _find_family(card: ModelCard, folder: Path, config: Mapping[str, Any], modules: ModuleList) -> Family | None:
    """Return the family by what the folder says, or None where it says too little."""
    architecture = _architecture(config)
    if is_llm_reranker(card, config, modules):
        return "llm-reranker"
    if modules.tokens:
        return "colbert"
    if modules.splade is not None or card.family == "splade":
        return "splade"
    if all((folder / file).is_file() for file in HEADS) and card.family in {"auto", "bge-m3"}:
        return "bge-m3"
    # Without a pooling, an embedder is refused later, with a sentence of its own.
    stated = card.family in {"encoder", "decoder"} or (card.pooling and card.family != "cross-encoder")
    if modules.pooling or stated:
        return "decoder" if _is_decoder(config) else "encoder"
    return "cross-encoder" if architecture.endswith("ForSequenceClassification") else None


def _explain(card: ModelCard, config: Mapping[str, Any]) -> str:
    architecture = _architecture(config) or "a model without an architecture"
    if card.family == "cross-encoder":
        if architecture.endswith("ForCausalLM"):
            return f"it is {architecture}, a language model without a head for scores; {_FIX}, or its template"
        return f"it is {architecture}, which has no head for scores; {_FIX}"
    if architecture.endswith("ForCausalLM"):
        return (
            f"it is {architecture}, a language model, and nothing in its folder says how it makes vectors or scores; "
            "in a card, say pooling = last_token or mean if it is an embedder, template if it is a reranker"
        )
    return (
        f"it is {architecture}, and neither its card nor its folder says a pooling (modules.json or "
        "1_Pooling/config.json); say it in a card: pooling = cls, mean or last_token, as the model's page does"
    )


def _refuse_own_code(name: str, config: Mapping[str, Any]) -> None:
    if config.get("auto_map") and config["model_type"] not in _ADOPTED and _architecture(config) != LAYERWISE:
        code = ", ".join(sorted({str(value) for value in config["auto_map"].values()}))
        raise ConfigError(
            f"model {name}: it needs code of its own folder ({code}), which is never run here; name a variant that "
            "transformers computes itself, or remove auto_map from its config.json if you know that it does"
        )


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _is_decoder(config: Mapping[str, Any]) -> bool:
    return config["model_type"] in _DECODERS or _architecture(config).endswith("ForCausalLM")
