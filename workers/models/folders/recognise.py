"""What a model folder is: family, pooling, modules, prompts, lengths and head, read from the folder's own files.

Owns the reading order (the card, then the folder) and the refusal of what is not known for sure. Two statements of one
fact have to agree. Loads no weights and imports no device library, so that it costs milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from config.catalog import Family, ModelCard
from tasks.errors import ConfigError
from workers.models.folders.folder import check_tokenizer_files, check_weight_files, read_json
from workers.models.folders.kinds import check_activation, check_head, choose_family
from workers.models.folders.lengths import read_max_tokens
from workers.models.folders.llm_rerankers import PairReading, read_layers, read_pairs
from workers.models.folders.modules import ModuleList, Step, read_modules
from workers.models.folders.prompts import read_prompts
from workers.models.folders.token_models import TokenReading, read_tokens

__all__ = ["Recipe", "recognise"]

_STATED = "config_sentence_transformers.json"
_EMBEDDERS = ("encoder", "decoder", "bge-m3", "splade", "colbert")
# What the transformer module is made for, where that is not stated.
_TASK = "feature-extraction"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is computed, with everything decided.

    Attributes:
        card: the card with what the folder says filled in.
        folder: the whole model.
        transformer: where its transformer and tokenizer lie.
        pooling: how a vector is made of the hidden states, several joined by `+`; empty for scores.
        steps: what follows.
        lower_case: whether texts are read in lower case, whatever the tokenizer does.
        bidirectional: whether the folder asks a decoder to look both ways.
        pairs: how a language model that ranks reads a pair; None for all others.
        tokens: how a model that gives a vector for each token reads texts; None for all others.
    """

    card: ModelCard
    folder: Path
    transformer: Path
    pooling: str = ""
    steps: tuple[Step, ...] = ()
    lower_case: bool = False
    bidirectional: bool = False
    pairs: PairReading | None = None
    tokens: TokenReading | None = None

    @property
    def family(self) -> Family:
        """The family, which is no longer `auto`."""
        return self.card.family


def recognise(card: ModelCard, folder: Path) -> Recipe:
    """Read the folder and return how its model is computed.

    Raises:
        ConfigError: something is damaged, unknown or contradictory; the message says what, and the way out.
    """
    name = card.name
    modules = read_modules(name, folder)
    transformer = folder / modules.transformer
    config = read_json(name, transformer / "config.json")
    _refuse_kinds(name, folder, config)
    check_weight_files(name, transformer)
    check_tokenizer_files(name, transformer)
    family = choose_family(card, folder, config, modules)
    text = read_json(name, _transformer_config(transformer))
    _refuse_text_settings(name, text, family)
    most = text.get("max_seq_length")
    common = {"family": family, "max_tokens": read_max_tokens(card, transformer, config, most)}
    lower_case = text.get("do_lower_case") is True
    if family == "llm-reranker":
        return _recognise_llm(card, folder, transformer, common, (config, modules, text))
    if family not in _EMBEDDERS:
        check_head(card, config, read_json(name, folder / _STATED))
        fields = common | {"capabilities": card.capabilities or ("rerank",), "rerank_by": "cross-encoder"}
        return Recipe(card.model_copy(update=fields), folder, transformer, lower_case=lower_case)
    if family == "colbert":
        return _recognise_tokens(card, folder, transformer, common, (config, modules, text))
    if family == "splade":
        return _recognise_splade(card, folder, transformer, common, (config, modules))
    pooling = _agree(card, "pooling", card.pooling, modules.pooling)
    if not pooling:
        raise ConfigError(
            f"model {name}: neither its card nor {folder} says a pooling (modules.json or 1_Pooling/config.json); "
            "say it in a card: pooling = cls, mean or last_token, as the model's page does"
        )
    fields = common | _describe_vectors(card, folder, config, modules, pooling)
    steps = _choose_steps(modules, normalize=bool(fields["normalize"]))
    if family == "bge-m3" and any(step.kind != "normalize" for step in steps):
        raise ConfigError(f"model {name}: Dense modules beside the heads of bge-m3 are not supported")
    return Recipe(
        card=_fill(card, fields),
        folder=folder,
        transformer=transformer,
        pooling=pooling,
        steps=steps,
        lower_case=lower_case,
        bidirectional=config.get("is_causal") is False or config.get("use_bidirectional_attention") is True,
    )


def _recognise_tokens(
    card: ModelCard,
    folder: Path,
    transformer: Path,
    common: dict[str, Any],
    read: tuple[Mapping[str, Any], ModuleList, Mapping[str, Any]],
) -> Recipe:
    """Return the recipe of a model that gives a vector for each token."""
    config, modules, text = read
    stated = read_json(card.name, folder / _STATED)
    if (kind := stated.get("model_type")) not in {"MultiVectorEncoder", "ColBERT"}:
        raise ConfigError(f"model {card.name}: {folder} holds a {kind}, and its modules are those of token vectors")
    if stated.get("default_prompt_name"):
        raise ConfigError(f"model {card.name}: it puts a default prompt before texts, which is not supported")
    tokens = read_tokens(card, folder, stated, modules, text)
    width = _agree(card, "dimension", card.dimension, _count_dimensions(card, config, modules, "token"))
    fields = common | {
        "max_tokens": card.max_tokens or min(tokens.document_tokens or common["max_tokens"], common["max_tokens"]),
        "capabilities": card.capabilities or ("colbert", "rerank"),
        "rerank_by": "maxsim",
        "dimension": width,
    }
    # A card may have documents read further than the folder has them.
    longer = replace(tokens, document_tokens=card.max_tokens or tokens.document_tokens)
    return Recipe(_fill(card, fields), folder, transformer, pooling="token", steps=modules.steps, tokens=longer)


def _recognise_splade(
    card: ModelCard,
    folder: Path,
    transformer: Path,
    common: dict[str, Any],
    read: tuple[Mapping[str, Any], ModuleList],
) -> Recipe:
    """Return the recipe of a sparse model: the logits of its masked language model, pooled over a text."""
    config, modules = read
    architecture = str((config.get("architectures") or [""])[0])
    if not architecture.endswith("ForMaskedLM"):
        raise ConfigError(f"model {card.name}: it is {architecture}, without the masked language model of SPLADE")
    how = read_json(card.name, folder / (modules.splade or "") / "config.json") if modules.splade else {}
    pooling, activation = how.get("pooling_strategy", "max"), how.get("activation_function", "relu")
    if pooling not in {"max", "sum"} or activation not in {"relu", "log1p_relu"}:
        raise ConfigError(f"model {card.name}: its weights are pooled by {pooling} of {activation}, which is not known")
    fields = common | {
        "capabilities": card.capabilities or ("sparse",),
        "similarity": "dot",
        **read_prompts(card, read_json(card.name, folder / _STATED)),
    }
    return Recipe(_fill(card, fields), folder, transformer, pooling=f"splade-{pooling}-{activation}")


def _recognise_llm(
    card: ModelCard,
    folder: Path,
    transformer: Path,
    common: dict[str, Any],
    read: tuple[Mapping[str, Any], ModuleList, Mapping[str, Any]],
) -> Recipe:
    """Return the recipe of a language model that ranks; `read` is config.json, modules and the transformer's file."""
    config, modules, text = read
    stated = read_json(card.name, folder / _STATED)
    pairs = read_pairs(card, folder, config, modules, text)
    if pairs.head == "label":
        check_head(card, config, stated)
    else:
        check_activation(card, config, stated)
    prompt = card.query_instruction or (pairs.template.default_instruction if pairs.template else "")
    prompts = stated.get("prompts") or {}
    layers = read_layers(pairs, config)
    fields = common | {
        "capabilities": card.capabilities or ("rerank",),
        "rerank_by": "cross-encoder",
        "query_instruction": prompt or prompts.get(stated.get("default_prompt_name") or "", ""),
        "cutoff_layers": _agree(card, "cutoff_layers", card.cutoff_layers, layers),
    }
    return Recipe(_fill(card, fields), folder, transformer, pairs=pairs)


def _describe_vectors(
    card: ModelCard, folder: Path, config: Mapping[str, Any], modules: ModuleList, pooling: str
) -> dict[str, Any]:
    """Return the fields of an embedder's card that follow from the folder."""
    stated = read_json(card.name, folder / _STATED)
    kind = stated.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ConfigError(f"model {card.name}: {folder} holds a {kind}, which is not supported; only dense models are")
    normalizes = any(step.kind == "normalize" for step in modules.steps) if modules.stated else True
    heads = ("sparse", "colbert") if _has_heads(folder) and card.family in {"auto", "bge-m3"} else ()
    return {
        "capabilities": card.capabilities or ("dense", *heads, "rerank"),
        "rerank_by": card.rerank_by or ("multi-vector" if heads and not card.capabilities else "similarity"),
        "dimension": _agree(card, "dimension", card.dimension, _count_dimensions(card, config, modules, pooling)),
        "pooling": pooling,
        "normalize": normalizes if card.normalize is None else card.normalize,
        "matryoshka": card.matryoshka or tuple(config.get("matryoshka_dimensions") or ()),
        # Of models that are trained for every length: the words of Hugging Face's and vLLM's configurations.
        "matryoshka_from": card.matryoshka_from or int(config.get("is_matryoshka") is True),
        "similarity": card.similarity or stated.get("similarity_fn_name"),
        **read_prompts(card, stated),
    }


def _count_dimensions(card: ModelCard, config: Mapping[str, Any], modules: ModuleList, pooling: str) -> int:
    """Follow the length of a vector from the hidden states through all steps."""
    size = next((config[key] for key in ("hidden_size", "dim", "n_embd", "d_model") if config.get(key)), None)
    if not isinstance(size, int):
        raise ConfigError(f"model {card.name}: its config.json says no hidden_size")
    size *= len(pooling.split("+"))
    for step in modules.steps:
        if step.kind == "normalize":
            continue
        if step.in_features != size:
            message = f"its {step.path} takes vectors of {step.in_features}, what comes before gives {size}"
            raise ConfigError(f"model {card.name}: {message}")
        size = step.out_features
    return size


def _choose_steps(modules: ModuleList, *, normalize: bool) -> tuple[Step, ...]:
    """Return the folder's steps; whether a vector has length 1 at the end is the card's to say."""
    steps = list(modules.steps)
    if normalize and not any(step.kind == "normalize" for step in steps):
        return (*steps, Step("normalize"))
    if not normalize and steps and steps[-1].kind == "normalize":
        return tuple(steps[:-1])
    return tuple(steps)


def _fill(card: ModelCard, fields: dict[str, Any]) -> ModelCard:
    """Return the card with the fields, checked as a card that was written like this."""
    return ModelCard.model_validate(card.model_dump() | fields)


def _agree(card: ModelCard, what: str, stated: Any, found: Any) -> Any:
    if stated and found and stated != found:
        raise ConfigError(f"model {card.name}: its card says {what} {stated}, its folder says {found}")
    return stated or found


def _has_heads(folder: Path) -> bool:
    return (folder / "sparse_linear.pt").is_file() and (folder / "colbert_linear.pt").is_file()


def _transformer_config(folder: Path) -> Path:
    """Return sentence-transformers' file of the transformer: its name in old folders holds the type of the model."""
    return next(iter(sorted(folder.glob("sentence_*_config.json"))), folder / "sentence_bert_config.json")


def _refuse_kinds(name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what no family here computes."""
    kind = config.get("model_type")
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(f"model {name}: {folder} is an adapter (LoRA); merge it into its base model with peft first")
    if not isinstance(kind, str) or not kind:
        raise ConfigError(f"model {name}: the config.json of {folder} names no model_type")
    if config.get("is_encoder_decoder") or kind in {"t5", "mt5", "umt5"}:
        raise ConfigError(f"model {name}: {kind} is an encoder-decoder, a family that is not supported")
    if several := [key for key in ("vision_config", "audio_config") if config.get(key)]:
        raise ConfigError(f"model {name}: {kind} reads more than text ({', '.join(several)}), which is not supported")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise ConfigError(
            f"model {name}: its weights are quantized ({method}), which is not supported: name the original"
        )


def _refuse_text_settings(name: str, text: Mapping[str, Any], family: Family) -> None:
    """Refuse settings of the transformer module that change what it reads or gives."""
    wanted, output = ("fill-mask", "logits") if family == "splade" else (_TASK, "last_hidden_state")
    task = text.get("transformer_task", wanted)
    if family in _EMBEDDERS and task != wanted:
        raise ConfigError(f"model {name}: its transformer is one for {task}, not for vectors of texts")
    way = text.get("modality_config", {}).get("text", {"method": "forward", "method_output_name": output})
    if family in _EMBEDDERS and (way.get("method"), way.get("method_output_name")) != ("forward", output):
        raise ConfigError(f"model {name}: its transformer reads texts by {way}, which is not supported")
    if text.get("processing_kwargs") and family != "llm-reranker":
        message = f"model {name}: its texts are tokenized with {text['processing_kwargs']}, which is not supported"
        raise ConfigError(message)
