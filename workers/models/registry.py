"""From cards to loaded models: which backend runs a model on this device, and in which precision.

Owns that choice. Backends are imported late, so that a worker pays only for what its models need.
"""

import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Iterable
from typing import Any

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError, WorkError
from workers.cores import usable_cores
from workers.hardware import choose_devices, cpu_has_bfloat16, memory_share
from workers.models.downloads.fetch import fetch, models_dir
from workers.models.export import TOKENIZER, TRAITS
from workers.models.exported import find_or_export
from workers.models.fingerprint import fingerprint_recipe, make_fingerprint
from workers.models.folders.recognise import Recipe, recognise
from workers.models.loaded import LoadedModel
from workers.models.proof import prove
from workers.models.quantize import check_quantized, quantize
from workers.models.tokenizing.tokenizer import read_tokenizer
from workers.models.weights import load_weights

__all__ = ["load_model", "load_models"]

_log = logging.getLogger(__name__)

# Backends of families that give no dense vector, by module and class.
_BACKENDS = {"splade": ("splade", "SpladeBackend"), "colbert": ("token_vectors", "TokenBackend")}
_TORCH_ONLY = frozenset(["llm-reranker", "splade", "colbert"])


def load_models(cards: Iterable[ModelCard], settings: Settings) -> dict[str, LoadedModel]:
    """Load every card's model on this worker's device, by card name.

    Raises:
        ConfigError: a model cannot be found, loaded or run here.
    """
    return {card.name: load_model(card, settings) for card in cards}


def load_model(card: ModelCard, settings: Settings) -> LoadedModel:
    """Load one model and prove it; its card has what the folder says filled in.

    Raises:
        ConfigError: it cannot be found, loaded or served here; the message says why, and the way out.
    """
    if card.family == "fake":
        return _load_fake(card)
    recipe = recognise(card, fetch(card, settings))
    device = _device(settings)
    check_quantized(recipe.card, device)
    kind = _backend(recipe.card, settings, device)
    if kind == "openvino":
        try:
            return _proved(_load_openvino(recipe, settings))
        except WorkError as error:
            if card.backend == "openvino":
                raise ConfigError(error.message) from error
            _log.warning("%s; torch serves it, more slowly", error.message)
    return _proved(_load_torch(recipe, device, settings, packed=kind == "packed"))


def _proved(model: LoadedModel) -> LoadedModel:
    prove(model)
    return model


def _backend(card: ModelCard, settings: Settings, device: str) -> str:
    """Return torch, packed or openvino. OpenVINO is the faster one on a CPU, for what it can run."""
    if card.quantize:
        return "torch"
    if card.family in _TORCH_ONLY:
        if card.backend not in {"auto", "torch"}:
            raise ConfigError(f"model {card.name}: models of the family {card.family} are computed by torch only")
        return "torch"
    can = device == "cpu" and _wish(card, settings) != "float16"
    if card.backend == "auto":
        if settings.packed == "on" or (settings.packed == "auto" and device.startswith("cuda")):
            return "packed"
        return "openvino" if can and importlib.util.find_spec("openvino") else "torch"
    if card.backend not in {"torch", "packed", "openvino"}:
        raise ConfigError(f"model {card.name}: unknown backend {card.backend!r}")
    if card.backend == "openvino" and not can:
        raise ConfigError(f"model {card.name}: OpenVINO runs on a CPU, in float32 or bfloat16")
    return card.backend


def _load_fake(card: ModelCard) -> LoadedModel:
    fake = importlib.import_module("workers.models.backends.fake")
    return LoadedModel(
        card=card,
        tokenizer=fake.FakeTokenizer(card),
        backend=fake.FakeBackend(card),
        fingerprint=make_fingerprint(card, "float32"),
    )


def _load_openvino(recipe: Recipe, settings: Settings) -> LoadedModel:
    exported = find_or_export(recipe, models_dir(settings) / "openvino")
    module = importlib.import_module("workers.models.backends.openvino")
    most = recipe.card.max_tokens
    traits = module.Traits(**json.loads((exported / TRAITS).read_text("utf-8")), max_tokens=most)
    dtype = _openvino_dtype(recipe.card, settings)
    return LoadedModel(
        card=recipe.card,
        tokenizer=read_tokenizer(exported / TOKENIZER, most, traits.fallback_id),
        backend=module.compile_exported(exported, traits, dtype, _threads(settings)),
        fingerprint=fingerprint_recipe(recipe, dtype),
    )


def _load_torch(recipe: Recipe, device: str, settings: Settings, *, packed: bool) -> LoadedModel:
    torch: Any = importlib.import_module("torch")
    dtype = _wish(recipe.card, settings)
    if device == "cpu":
        torch.set_num_threads(_threads(settings))
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else _gpu_dtype(recipe.card, torch)
    weights = load_weights(recipe, dtype)
    if recipe.card.quantize:
        quantize(recipe.card, weights, device)
    where, kind = _BACKENDS.get(recipe.family, ("torch", "TorchBackend"))
    module = importlib.import_module(f"workers.models.backends.{where}")
    backend, fallback = getattr(module, kind)(weights, device, dtype), ""
    if packed:
        choose = importlib.import_module("workers.models.backends.packed.choose")
        backend, fallback = choose.pack(recipe.card, weights, backend)
    return LoadedModel(
        card=recipe.card,
        tokenizer=weights.tokenizer,
        backend=backend,
        fingerprint=fingerprint_recipe(recipe, "+".join(filter(None, (dtype, recipe.card.quantize)))),
        fallback=fallback,
    )


def _gpu_dtype(card: ModelCard, torch: Any) -> str:
    """Prefer float16: eight times finer than bfloat16, so a text gets the same vector whatever it is batched with.

    Decoders are trained in bfloat16 and overflow float16. What overflows elsewhere, the guard computes again.
    """
    decodes = card.family in {"decoder", "llm-reranker"}
    return "bfloat16" if decodes and torch.cuda.is_bf16_supported() else "float16"


def _device(settings: Settings) -> str:
    """Return this worker's one device: `cpu`, or a GPU, of which the worker sees only its own."""
    kind = settings.device
    if kind not in {"cpu", "cuda"}:  # the launcher and a worker's start have chosen before
        kind = choose_devices(settings, os.environ)[0].kind
    return "cpu" if kind == "cpu" else _open_gpu(settings)


def _open_gpu(settings: Settings) -> str:
    """Return the GPU when it computes. One that does not must never become a worker that is slow on the CPU unseen.

    Raises:
        ConfigError: torch was built without CUDA.
        WorkError: CUDA does not start on it; later it may.
    """
    torch: Any = importlib.import_module("torch")
    if not torch.backends.cuda.is_built():
        raise ConfigError("this worker is for a GPU, but torch was built without CUDA; TWOLANE_DEVICE=cpu uses the CPU")
    try:
        if (share := memory_share(settings)) < 1:
            torch.cuda.set_per_process_memory_fraction(share, 0)
        torch.ones(1, device="cuda:0").item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise WorkError(f"this worker is for a GPU, but CUDA does not start there: {reason}") from error
    return "cuda:0"


def _wish(card: ModelCard, settings: Settings) -> str:
    return card.dtype if card.dtype != "auto" else settings.dtype


def _openvino_dtype(card: ModelCard, settings: Settings) -> str:
    wish = _wish(card, settings)
    if wish != "auto":
        return wish
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def _threads(settings: Settings) -> int:
    return settings.threads or usable_cores()
