"""From a recognised folder to a torch module that gives vectors or scores, and the proof that all its weights are used.

Owns loading through transformers, and for bge-m3 through FlagEmbedding. Owns neither device nor batching (the backends
and the engine). A weight that is missing would be random, one that is left over means that the model is computed
otherwise than it was trained: both refuse the model.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from tasks.errors import ConfigError
from workers.models.folders.pair_template import read_chat_template
from workers.models.folders.recognise import Recipe
from workers.models.tokenizing.pair_tokenizer import TemplateTokenizer
from workers.models.tokenizing.token_tokenizer import TokenTokenizer
from workers.models.tokenizing.tokenizer import FastTokenizer, lower_cased

if TYPE_CHECKING:
    import torch

    from workers.models.folders.llm_rerankers import PairReading
    from workers.models.folders.pair_template import PairTemplate

__all__ = ["Weights", "load_weights"]

# Heads of other tasks, and constants that older versions of transformers stored: nothing here computes with them.
_UNUSED = re.compile(
    r"(cls|lm_head|classifier|pre_classifier|score|qa_outputs|head|decoder|vocab_(transform|layer_norm|projector)"
    r"|generator_lm_head|(lm|mask)_predictions|predictions|pooler)\.|(.+\.)?pooler\.|.*\b(position_ids|inv_freq|masked_bias)$"
)
_POOLER = re.compile(r"(.+\.)?pooler\.")
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Weights:
    """A model in memory, not yet bound to a device.

    Attributes:
        module: maps (input_ids, attention_mask, token_type_ids | None) of int64 (n, length) to float32 (n, d)
            vectors or (n,) scores in [0, 1].
        tokenizer: its tokenizer.
        pad_id: the id that fills rows up.
        reads_types: whether the model tells the texts of a pair apart by token types.
        dimension: length of a vector; None for scores.
        pooling: how a vector is made of the hidden states; empty for scores.
    """

    module: "torch.nn.Module"
    tokenizer: FastTokenizer
    pad_id: int
    reads_types: bool
    dimension: int | None
    pooling: str


def load_weights(recipe: Recipe, dtype: str) -> Weights:
    """Load the model on the CPU in the given precision (float32, bfloat16 or float16).

    Raises:
        ConfigError: the folder cannot be loaded, or its weights are not those of the model.
    """
    _stay_offline()
    import transformers  # noqa: PLC0415 - this is where torch comes in

    transformers.utils.logging.disable_progress_bar()
    # What it would warn of is refused here, in our words.
    transformers.utils.logging.set_verbosity_error()
    name = recipe.card.name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(recipe.transformer), **_LOCAL)
        if recipe.family == "llm-reranker":
            module, config, template = _load_llm(recipe, dtype, tokenizer)
        else:
            (module, config), template = _load_module(recipe, dtype), None
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise errors of many trees, and this is their edge
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model {name}: cannot load {recipe.transformer}: {reason}") from error
    pad_id = _pad_id(tokenizer)
    fast = FastTokenizer(_fast(recipe, tokenizer, config), recipe.card.max_tokens, _fallback_id(tokenizer, pad_id))
    return Weights(
        module=module.eval().requires_grad_(requires_grad=False),
        tokenizer=_specialize(recipe, tokenizer, fast, template),
        pad_id=pad_id,
        reads_types=not recipe.pooling and getattr(config, "type_vocab_size", 0) > 1,
        dimension=_dimension(recipe),
        pooling=recipe.pooling,
    )


def _dimension(recipe: Recipe) -> int | None:
    if recipe.family == "splade":
        # Its value of a row is one number, which says whether the row can be used.
        return 1
    return recipe.card.dimension if recipe.pooling else None


_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def _load_module(recipe: Recipe, dtype: str) -> "tuple[torch.nn.Module, Any]":
    """Return the model with all that follows the transformer, and its configuration."""
    from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification  # noqa: PLC0415

    from workers.models.families import Embedder, MultiVectorEmbedder, Scorer, SpladeEmbedder, TokenEmbedder  # noqa: PLC0415
    from workers.models.folders.pooling import load_steps  # noqa: PLC0415

    if recipe.family == "cross-encoder":
        model = _load_transformer(recipe, AutoModelForSequenceClassification, dtype)
        return Scorer(model), model.config
    if recipe.family == "splade":
        model = _load_transformer(recipe, AutoModelForMaskedLM, dtype)
        return SpladeEmbedder(model, recipe.pooling), model.config
    steps = load_steps(recipe.card.name, recipe.folder, recipe.steps)
    if recipe.family == "colbert":
        model = _load_transformer(recipe, AutoModel, dtype)
        return TokenEmbedder(model, steps), model.config
    if recipe.card.extras:
        # On the meta device: only which weights there are, and none of their bytes.
        _load_transformer(recipe, AutoModel, dtype, device_map="meta")
        flag = _load_m3(recipe, dtype)
        return MultiVectorEmbedder(flag, recipe.pooling, steps), flag.model.model.config
    model = _load_transformer(recipe, AutoModel, dtype)
    if recipe.bidirectional:
        _require_bidirectional(recipe, model)
    return Embedder(model, recipe.pooling, steps), model.config


def _load_llm(recipe: Recipe, dtype: str, tokenizer: Any) -> "tuple[torch.nn.Module, Any, PairTemplate]":
    """Return a language model that ranks, its configuration and how it writes pairs."""
    from workers.models import logit_scorers  # noqa: PLC0415 - late, as torch

    pairs, load = cast("PairReading", recipe.pairs), partial(_load_transformer, recipe, dtype=dtype)
    if pairs.head == "layers":
        module, config = logit_scorers.load_layerwise(recipe, load)
        return module, config, cast("PairTemplate", pairs.template)
    template = pairs.template
    if template is None:
        ids = cast("tuple[int, int | None]", pairs.token_ids)
        template = read_chat_template(recipe.card.name, tokenizer, pairs.chat_settings, ids)
    found = _find_token_ids(recipe, tokenizer, template)
    scorer, config = logit_scorers.load_logit_scorer(recipe, load, dtype, found)
    return scorer, config, template


def _find_token_ids(recipe: Recipe, tokenizer: Any, template: "PairTemplate") -> list[int]:
    """Return the ids of yes and no; folder and template have to agree."""
    name, pairs = recipe.card.name, cast("PairReading", recipe.pairs)
    found = [_token_id(name, tokenizer, word) for word in (template.yes, template.no) if word != ""]
    stated = [one for one in pairs.token_ids or () if one is not None]
    if stated and stated != found:
        raise ConfigError(f"model {name}: its folder reads the tokens {stated}, its template {found}")
    return found


def _token_id(name: str, tokenizer: Any, word: str | int) -> int:
    if isinstance(word, int):
        return word
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(f"model {name}: its tokenizer does not know {word!r}, which its template asks for")
    return int(ids[0])


def _specialize(recipe: Recipe, tokenizer: Any, fast: FastTokenizer, template: "PairTemplate | None") -> FastTokenizer:
    """Return the tokenizer that writes pairs in a template, or reads queries and documents otherwise."""
    begin = tokenizer.bos_token_id
    try:
        if template is not None:
            return TemplateTokenizer(fast, template, None if begin == tokenizer.pad_token_id else begin)
        if recipe.tokens is None:
            return fast
        named = recipe.tokens.expand_with
        ends = (tokenizer.mask_token_id, tokenizer.eos_token_id)
        fill = fast.fast.token_to_id(named) if named else next((one for one in ends if one is not None), None)
        return TokenTokenizer(fast, recipe.tokens, fill)
    except ConfigError as error:
        raise ConfigError(f"model {recipe.card.name}: {error.message}") from error


def _load_transformer(recipe: Recipe, kind: Any, dtype: str, **more: Any) -> Any:
    import torch  # noqa: PLC0415 - loaded by now

    model, info = kind.from_pretrained(
        str(recipe.transformer), dtype=getattr(torch, dtype), output_loading_info=True, **_LOCAL, **more
    )
    missing = info["missing_keys"]
    if recipe.family != "cross-encoder":
        missing = [key for key in missing if not _POOLER.match(key)]
    leftover = [key for key in info["unexpected_keys"] if not _UNUSED.match(key)]
    what = f"{recipe.transformer} as {type(model).__name__}"
    _require_none(recipe, missing, f"{what} lacks the weights", "they would be random")
    _require_none(recipe, leftover, f"{what} has no use for the weights", "it would be computed without them")
    _require_none(recipe, map(str, info["mismatched_keys"]), f"{what} has other shapes for", "they would be random")
    # A decoder would keep keys and values for a next token that never comes.
    model.config.use_cache = False
    return model


def _require_none(recipe: Recipe, keys: Iterable[str], what: str, why: str) -> None:
    if found := sorted(keys):
        named = ", ".join(found[:_MOST_NAMED]) + (
            f" and {len(found) - _MOST_NAMED} more" if found[_MOST_NAMED:] else ""
        )
        raise ConfigError(f"model {recipe.card.name}: {what} {named}: {why}")


def _load_m3(recipe: Recipe, dtype: str) -> Any:
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - seconds, which only this family pays

    # One device, named: without it FlagEmbedding takes every GPU that it sees.
    return BGEM3FlagModel(
        str(recipe.transformer),
        pooling_method=recipe.pooling,
        normalize_embeddings=recipe.card.normalized,
        use_fp16=dtype == "float16",
        use_bf16=dtype == "bfloat16",
        devices="cpu",
        trust_remote_code=False,
    )


def _require_bidirectional(recipe: Recipe, model: Any) -> None:
    """Check that a later token changes what an earlier one gives, where the folder says so."""
    import torch  # noqa: PLC0415 - loaded by now

    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    if torch.equal(states[0, 0], states[1, 0]):
        raise ConfigError(
            f"model {recipe.card.name}: its config.json asks for attention both ways, and this version of transformers "
            f"computes {type(model).__name__} from left to right only: update transformers, or name another model"
        )


def _fast(recipe: Recipe, tokenizer: Any, config: Any) -> Any:
    name = recipe.card.name
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ConfigError(f"model {name}: it has no fast tokenizer (tokenizer.json)")
    largest, rows = max(fast.get_vocab().values(), default=0), getattr(config, "vocab_size", None)
    if rows is not None and largest >= rows:
        raise ConfigError(f"model {name}: its tokenizer gives ids up to {largest}, its weights know {rows} tokens")
    return lower_cased(fast) if recipe.lower_case else fast


def _pad_id(tokenizer: Any) -> int:
    """Some decoders have no padding id of their own; any id will do there, since nothing attends to padding."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _fallback_id(tokenizer: Any, pad_id: int) -> int:
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else pad_id


def _stay_offline() -> None:
    """Keep the libraries from calling home: the folder is complete, and a worker's start must not hang on a hub."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    # Texts are tokenized in the threads that bring them; a pool of more threads would fight the device thread.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
