"""What a model's files alone show: numbers that are none, matrices of zeros, modules that nobody names.

Owns the check of every tensor. `workers.models.downloads.fetch` checks that the files are those of the hub.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from workers.doctor.comparing import Check
from workers.models.folders.recognise import Recipe

__all__ = ["check_modules", "check_tensors"]

_MODULE = re.compile(r"\d+_(Dense|LayerNorm|Normalize|CNN|LSTM|WeightedLayerPooling)")
# Larger than any weight of a model that works; what a flipped bit of an exponent gives.
_LARGEST = 1e6


def check_tensors(recipe: Recipe) -> Check:
    """Look at every number of the weights."""
    folders = [recipe.transformer, *(recipe.folder / step.path for step in recipe.steps if step.path)]
    paths = sorted(path for folder in folders for path in folder.glob("*.safetensors"))
    if not paths:
        return Check("weights", "note", "no safetensors: the numbers of pickles are not looked at")
    numbers, zero_rows = 0, list[str]()
    for name, tensor in _tensors(paths):
        numbers += tensor.numel()
        if reason := _find_damage(tensor, name):
            return Check("weights", "FAILED", f"{name} {reason}")
        if _is_matrix(tensor, name) and bool((tensor == 0).all(dim=-1).any()):
            zero_rows.append(name)
    what = f"{numbers:,} numbers in {len(paths)} files, all finite"
    if zero_rows:
        return Check("weights", "note", f"{what}; rows of zeros in {', '.join(zero_rows[:3])}: a hole in the file?")
    return Check("weights", "ok", what)


def check_modules(recipe: Recipe) -> Check:
    """Look for modules that lie in the folder and are not computed."""
    used = {step.path.split("/")[0] for step in recipe.steps if step.path}
    unused = sorted(path.name for path in recipe.folder.iterdir() if path.is_dir() and path.name not in used)
    dropped = [name for name in unused if _MODULE.fullmatch(name) and not name.endswith("_Normalize")]
    parts = [recipe.pooling, *(step.kind for step in recipe.steps)] if recipe.pooling else ["head"]
    what = f"{recipe.family}: " + ", then ".join(parts)
    if dropped:
        return Check("modules", "FAILED", f"{what}; {', '.join(dropped)} in its folder is named by no modules.json")
    return Check("modules", "ok", what)


def _tensors(paths: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                yield name, file.get_tensor(name)


def _find_damage(tensor: torch.Tensor, name: str) -> str:
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    largest = float(tensor.abs().max())
    if not largest <= _LARGEST:
        return f"holds {largest:g}, which is no weight"
    return "is zero throughout" if largest == 0 and _is_matrix(tensor, name) else ""


def _is_matrix(tensor: torch.Tensor, name: str) -> bool:
    """Whether no row of it may be zero; of embeddings, that of padding and of unused tokens is."""
    return tensor.dim() > 1 and "embed" not in name and tensor.is_floating_point()
