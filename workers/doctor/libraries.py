"""The library that a model was published for, on the same folder: what ours is held against.

Owns the choice by the folder and what the libraries' calls look like. sentence-transformers is the reference where the
folder has its files and for cross-encoders; FlagEmbedding for bge-m3 and for folders that only its list of models
describes. Everything is computed in float32.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.doctor.comparing import gather
from workers.doctor.reranker_pages import open_page
from workers.models.folders.recognise import Recipe

__all__ = ["Reference", "draw_from_vocabulary", "open_reference"]

# float32; of token vectors, an object array of one (tokens, d) for each text.
Values = NDArray[Any]
_EXACT = {"dtype": torch.float32}


@dataclass(frozen=True, slots=True)
class Reference:
    """A loaded reference.

    Attributes:
        name: of the library, and what it took from elsewhere than the folder.
        compute: values of texts, or of (query, text) pairs.
        read: token ids of a text, or a pair, as far as the model reads it; None: the library does not show them.
        roles: values of texts with the prompt for `query` and for `document`, where the folder has prompts.
        doubt: what cannot be checked, since nobody but the card says it.
    """

    name: str
    compute: Callable[[Sequence[Any]], Values]
    read: Callable[[Any], list[int]] | None
    roles: dict[str, Callable[[Sequence[str]], Values]]
    doubt: str = ""


def open_reference(recipe: Recipe, device: str) -> Reference:
    """Load the model of a folder with its reference library.

    Raises:
        ConfigError: no library that is installed here computes it.
    """
    if recipe.pairs is not None:
        return _language_model(recipe, device)
    if (opened := _OPEN.get(recipe.family)) is not None:
        return opened(recipe, device)
    listed = None if (recipe.folder / "modules.json").is_file() else _find_listed(recipe)
    if listed is not None:
        return _flag_embedding(recipe, listed, device)
    return _sentence_transformers(recipe, device)


def draw_from_vocabulary(recipe: Recipe) -> Callable[[random.Random, int], str]:
    """Return what draws a text of so many tokens of the model's own vocabulary."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(str(recipe.transformer), local_files_only=True)
    special = set(tokenizer.all_special_ids)
    ids = [at for at in range(len(tokenizer)) if at not in special]
    return lambda draw, count: str(tokenizer.decode(draw.choices(ids, k=count)))


def _sentence_transformers(recipe: Recipe, device: str) -> Reference:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds

    stated = (recipe.folder / "modules.json").is_file()
    kwargs: dict[str, Any] = {"device": device, "local_files_only": True}
    if stated:
        model = SentenceTransformer(str(recipe.folder), model_kwargs={"dtype": torch.float32}, **kwargs)
    else:
        model = SentenceTransformer(modules=_modules(recipe), **kwargs)
    model.max_seq_length = recipe.card.max_tokens

    def encode(call: Any, texts: Sequence[str]) -> Values:
        return np.asarray(call(list(texts), batch_size=8, show_progress_bar=False), np.float32)

    calls = {"query": model.encode_query, "document": model.encode_document} if stated else {}
    return Reference(
        name="sentence-transformers",
        compute=partial(encode, model.encode),
        read=lambda text: list(model.preprocess([text])["input_ids"][0].tolist()),
        roles={role: partial(encode, call) for role, call in calls.items()},
        doubt="" if stated else f"nobody but the card says that it pools by {recipe.pooling}: compare its page",
    )


def _sparse_encoder(recipe: Recipe, device: str) -> Reference:
    from sentence_transformers import SparseEncoder  # noqa: PLC0415 - seconds
    from sentence_transformers.base.modules import Transformer  # noqa: PLC0415
    from sentence_transformers.sparse_encoder.modules import SpladePooling  # noqa: PLC0415

    stated = (recipe.folder / "modules.json").is_file()
    options: dict[str, Any] = {"transformer_task": "fill-mask", "model_kwargs": _EXACT}
    if stated:
        model = SparseEncoder(str(recipe.folder), device=device, model_kwargs=_EXACT, local_files_only=True)
    else:
        _, pooling, activation = recipe.pooling.split("-")
        how: Any = SpladePooling(pooling_strategy=pooling, activation_function=activation)  # type: ignore[arg-type] # it checks them itself
        model = SparseEncoder(modules=[Transformer(str(recipe.transformer), **options), how], device=device)
    model.max_seq_length = recipe.card.max_tokens

    def encode(call: Any, texts: Sequence[str]) -> Values:
        found = call(list(texts), batch_size=8, show_progress_bar=False, convert_to_sparse_tensor=False)
        return np.asarray(found.cpu(), np.float32)

    calls = {"query": model.encode_query, "document": model.encode_document} if stated else {}
    return Reference(
        name="sentence-transformers",
        compute=partial(encode, model.encode),
        read=lambda text: list(model.preprocess([text])["input_ids"][0].tolist()),
        roles={role: partial(encode, call) for role, call in calls.items()},
    )


def _multi_vector_encoder(recipe: Recipe, device: str) -> Reference:
    from sentence_transformers import MultiVectorEncoder  # noqa: PLC0415 - seconds

    model = MultiVectorEncoder(str(recipe.folder), device=device, model_kwargs=_EXACT, local_files_only=True)

    def encode(call: Any, texts: Sequence[str]) -> Values:
        found = call(list(texts), batch_size=8, show_progress_bar=False, convert_to_numpy=True)
        return gather([np.asarray(one, np.float32) for one in found])

    return Reference(
        name="sentence-transformers",
        compute=partial(encode, model.encode_document),
        read=None,
        roles={"query": partial(encode, model.encode_query)},
    )


def _modules(recipe: Recipe) -> list[torch.nn.Module]:
    """Return a bare folder's transformer with the card's pooling."""
    from sentence_transformers.base.modules import Transformer  # noqa: PLC0415 - seconds
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling  # noqa: PLC0415

    names = {"last_token": "lasttoken", "mean_sqrt_len": "mean_sqrt_len_tokens"}
    transformer = Transformer(str(recipe.transformer), model_kwargs={"dtype": torch.float32})
    modes = [names.get(mode, mode) for mode in recipe.pooling.split("+")]
    pooling = Pooling(transformer.get_embedding_dimension(), modes)
    return [transformer, pooling, *([Normalize()] if recipe.card.normalized else [])]


def _find_listed(recipe: Recipe) -> Any:
    """Return what FlagEmbedding's list of models says of this one, by any of its names; None: it is not there."""
    from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING  # noqa: PLC0415 - seconds

    card = recipe.card
    names = (card.name, *card.aliases, card.source, str(recipe.folder))
    return next((found for name in names if (found := AUTO_EMBEDDER_MAPPING.get(name.rpartition("/")[2]))), None)


def _flag_embedding(recipe: Recipe, listed: Any, device: str) -> Reference:
    card, pooling = recipe.card, listed.pooling_method.value
    model = listed.model_class(
        str(recipe.folder),
        pooling_method=pooling,
        normalize_embeddings=card.normalized,
        query_instruction_for_retrieval=card.query_instruction or None,
        query_instruction_format=listed.query_instruction_format,
        use_fp16=False,
        devices=device,
        trust_remote_code=False,
    )

    def encode(call: Any, texts: Sequence[str]) -> Values:
        return np.asarray(call(list(texts), batch_size=8, max_length=card.max_tokens), np.float32)

    return Reference(
        name=f"FlagEmbedding (by its list: {pooling})",
        compute=partial(encode, model.encode_corpus),
        read=lambda text: _read(model, text, card.max_tokens),
        roles={"query": partial(encode, model.encode_queries)} if card.query_instruction else {},
    )


def _bge_m3(recipe: Recipe, device: str) -> Reference:
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - seconds

    model = BGEM3FlagModel(
        str(recipe.folder), normalize_embeddings=recipe.card.normalized, use_fp16=False, devices=device
    )

    def encode(texts: Sequence[str]) -> Values:
        found: Any = model.encode(list(texts), batch_size=8, max_length=recipe.card.max_tokens)
        return np.asarray(found["dense_vecs"], np.float32)

    return Reference("FlagEmbedding", encode, lambda text: _read(model, text, recipe.card.max_tokens), {})


def _read(model: Any, text: str, max_tokens: int) -> list[int]:
    return list(model.tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"])


def _language_model(recipe: Recipe, device: str) -> Reference:
    """Return the reference of a language model that ranks."""
    card, pairs = recipe.card, recipe.pairs
    if pairs is None or pairs.template is None:
        return replace(_cross_encoder(recipe, device), read=None)
    template = card.template or "bge-reranker-v2"
    page = open_page(template, pairs.head, recipe.folder, device)
    instruction = card.query_instruction or None
    return Reference(f"the authors' code ({template})", lambda items: page(items, instruction), None, {})


def _cross_encoder(recipe: Recipe, device: str) -> Reference:
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - seconds

    model = CrossEncoder(
        str(recipe.folder),
        device=device,
        max_length=recipe.card.max_tokens,
        activation_fn=torch.nn.Sigmoid(),
        model_kwargs={"dtype": torch.float32},
        local_files_only=True,
    )
    return Reference(
        name="sentence-transformers",
        compute=lambda pairs: np.asarray(
            model.predict([tuple(pair) for pair in pairs], batch_size=8, show_progress_bar=False), np.float32
        ),
        read=lambda pair: list(model.tokenizer([pair[0]], [pair[1]])["input_ids"][0]),
        roles={},
    )


_OPEN: dict[str, Callable[[Recipe, str], Reference]] = {
    "splade": _sparse_encoder,
    "colbert": _multi_vector_encoder,
    "cross-encoder": _cross_encoder,
    "bge-m3": _bge_m3,
}
