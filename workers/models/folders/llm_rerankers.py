"""Rerankers that are language models: which folder is one, how it writes pairs, and where its score is read.

Owns that reading of a folder, and the refusal of those that cannot be computed as their authors do. Imports no device
library; the modules are in `logit_scorers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config.catalog import ModelCard
from tasks.errors import ConfigError
from workers.models.folders.folder import read_json
from workers.models.folders.modules import ModuleList
from workers.models.folders.pair_template import TEMPLATES, PairTemplate

__all__ = ["LAYERWISE", "PairReading", "is_llm_reranker", "read_layers", "read_pairs", "refuse_lightweight"]

# Its code is FlagEmbedding's; what it computes are Granite's layers, so none of its own code is needed.
LAYERWISE = "LayerWiseMiniCPMForCausalLM"
_LIGHTWEIGHT = "CostWiseGemmaForCausalLM"


@dataclass(frozen=True, slots=True)
class PairReading:
    """How a pair is written and scored.

    Attributes:
        template: None: as the chat template of the folder says.
        token_ids: of yes and no, where the folder states them; no is None where nothing is subtracted.
        chat_settings: arguments of the chat template.
        head: `logits` of tokens, one `label` of a classifier, or one head for each of several `layers`.
    """

    template: PairTemplate | None
    head: str
    token_ids: tuple[int, int | None] | None = None
    chat_settings: Mapping[str, Any] = field(default_factory=dict)


def is_llm_reranker(card: ModelCard, config: Mapping[str, Any], modules: ModuleList) -> bool:
    """Whether a card or its folder says so."""
    stated = card.family == "llm-reranker" or card.template or modules.logit_score is not None
    return bool(stated) or _architecture(config) == LAYERWISE


def refuse_lightweight(name: str, config: Mapping[str, Any]) -> None:
    """Refuse the one reranker of which nobody can say what it computes.

    Raises:
        ConfigError: it is that.
    """
    if _architecture(config) == _LIGHTWEIGHT or config.get("model_type") == "cost_wise_gemma":
        raise ConfigError(
            f"model {name}: it is a {_LIGHTWEIGHT} (bge-reranker-v2.5-gemma2-lightweight): its code does not run with "
            "current versions of transformers, and takes the head of the first layer whatever layer it cuts off after; "
            "name bge-reranker-v2-gemma or bge-reranker-v2-minicpm-layerwise"
        )


def read_pairs(
    card: ModelCard, folder: Path, config: Mapping[str, Any], modules: ModuleList, text: Mapping[str, Any]
) -> PairReading:
    """Return how the folder's reranker reads pairs.

    Args:
        card: its template goes before the folder's.
        folder: the whole model.
        config: config.json.
        modules: those of the folder.
        text: sentence-transformers' file of the transformer.

    Raises:
        ConfigError: it says too little, or what cannot be computed.
    """
    head = _find_head(card, config)
    if head == "layers":
        _require_simple_heads(card.name, config)
    score = modules.logit_score
    stated = None if score is None else _read_token_ids(card.name, folder / score)
    template = TEMPLATES.get(card.template or ("bge-reranker-v2" if head == "layers" else ""))
    if template is not None:
        return PairReading(template, head, stated)
    if stated is None:
        raise ConfigError(
            f"model {card.name}: it is a language model, and nothing in its folder says how it reads a pair; in a "
            f"card, say template = {' or '.join(TEMPLATES)}"
        )
    if "message" not in text.get("modality_config", {"message": {}}):
        raise ConfigError(f"model {card.name}: it reads pairs without a chat template, which is not supported")
    settings = text.get("processing_kwargs", {})
    if unknown := set(settings) - {"chat_template"}:
        raise ConfigError(f"model {card.name}: its texts are tokenized with {sorted(unknown)}, which is not supported")
    return PairReading(None, head, stated, settings.get("chat_template", {}))


def read_layers(pairs: PairReading, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the layers after which a reranker has a head of its own, ascending; of most, none."""
    if pairs.head != "layers":
        return ()
    return tuple(range(config.get("start_layer", 0), config.get("num_hidden_layers", 0) + 1))


def _find_head(card: ModelCard, config: Mapping[str, Any]) -> str:
    architecture = _architecture(config)
    if architecture == LAYERWISE:
        return "layers"
    if architecture.endswith("ForCausalLM"):
        return "logits"
    if architecture.endswith("ForSequenceClassification"):
        return "label"
    raise ConfigError(
        f"model {card.name}: it is {architecture or 'a model without an architecture'}, and a reranker by template is "
        "a language model with its head"
    )


def _read_token_ids(name: str, folder: Path) -> tuple[int, int | None]:
    stated = read_json(name, folder / "config.json")
    yes, no = stated.get("true_token_id"), stated.get("false_token_id")
    if not isinstance(yes, int) or not (no is None or isinstance(no, int)):
        raise ConfigError(f"model {name}: {folder} names no token whose logit is the score")
    return yes, no


def _require_simple_heads(name: str, config: Mapping[str, Any]) -> None:
    if config.get("head_type") != "simple" or config.get("head_multi") is not True:
        raise ConfigError(f"model {name}: a layerwise reranker with heads other than one number per layer")
    if config.get("rope_scaling") or config.get("pretraining_tp", 1) > 1:
        raise ConfigError(f"model {name}: rope_scaling and pretraining_tp are not supported in a layerwise reranker")


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])
