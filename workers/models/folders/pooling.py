"""From hidden states to one vector per text: the poolings and steps of sentence-transformers as torch modules.

Owns their arithmetic, in float32 whatever the transformer computes in. Rows are padded on the right.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tasks.errors import ConfigError
from workers.models.folders.modules import Step

__all__ = ["load_steps", "pool_states"]


def pool_states(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Make one vector of the states of each row.

    Args:
        states: float32, shape (n, length, d).
        mask: 1 for real tokens, shape (n, length), all of them at the front.
        pooling: one of `config.catalog.POOLINGS`, or several joined by `+`, whose vectors are concatenated.

    Returns:
        float32, shape (n, d times the number of poolings).
    """
    vectors = [_pool(states, mask, mode) for mode in pooling.split("+")]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)


def _pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "cls":
        return states[:, 0]
    if mode == "last_token":
        last = mask.sum(dim=1) - 1
        return states[torch.arange(states.shape[0], device=states.device), last]
    if mode == "max":
        return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values
    weights = mask.unsqueeze(-1).to(states.dtype)
    if mode == "weightedmean":
        # The first token counts once, the second twice, and so on.
        weights = weights.cumsum(dim=1) * weights
    divisor = weights.sum(dim=1)
    if mode == "mean_sqrt_len":
        divisor = divisor.sqrt()
    return (states * weights).sum(dim=1) / divisor


class _Normalize(torch.nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors, dim=-1)


class _LayerNorm(torch.nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(step.out_features)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        # The weights may be in half precision, the vectors are not.
        return torch.nn.functional.layer_norm(
            vectors, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )


class _Dense(torch.nn.Module):
    """See `sentence_transformers.base.modules.Dense`."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(step.in_features, step.out_features, bias=step.bias)
        if step.residual and step.in_features != step.out_features:
            self.residual = torch.nn.Linear(step.in_features, step.out_features, bias=False)
        self._activation = _activation(step.activation)
        self._adds_input = step.residual

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = self._activation(_linear(self.linear, vectors))
        if not self._adds_input:
            return changed
        kept = _linear(self.residual, vectors) if hasattr(self, "residual") else vectors
        return changed + kept


def load_steps(name: str, folder: Path, steps: tuple[Step, ...]) -> torch.nn.ModuleList:
    """Return the modules of the steps with their weights.

    Raises:
        ConfigError: weights are missing, or there are others than those of the module.
    """
    return torch.nn.ModuleList([_load_step(name, folder, step) for step in steps])


def _load_step(name: str, folder: Path, step: Step) -> torch.nn.Module:
    if step.kind == "normalize":
        return _Normalize()
    module = _Dense(step) if step.kind == "dense" else _LayerNorm(step)
    state = _read_state(name, folder / step.path)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model {name}: the weights in {folder / step.path} do not fit: {reason}") from error
    return module


def _read_state(name: str, folder: Path) -> dict[str, torch.Tensor]:
    safe, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)
        if old.is_file():
            state: dict[str, torch.Tensor] = torch.load(old, map_location="cpu", weights_only=True)
            return state
    except Exception as error:  # the formats raise errors of several trees, and this is their edge
        raise ConfigError(f"model {name}: the weights in {folder} cannot be read: {error}") from error
    raise ConfigError(f"model {name}: {folder} has no weights (model.safetensors)")


def _activation(path: str) -> torch.nn.Module:
    """Make the activation that a folder names, if it is a module of torch."""
    module, _, kind = path.rpartition(".")
    found: Any = getattr(importlib.import_module(module), kind, None) if module.startswith("torch.nn.modules") else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ConfigError(f"{path} is no module of torch")
    made: torch.nn.Module = found()
    return made


def _linear(layer: torch.nn.Linear, vectors: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return torch.nn.functional.linear(vectors, layer.weight.float(), bias)
