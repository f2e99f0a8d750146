"""The parts that transformers are made of, over the weights of a loaded model.

Owns reading them: each part shares the model's memory, several linear layers can be fused into one, and a weight that
nothing reads is noticed. The arithmetic is in the precision of the activations: weights of another are converted as
they are used, which is how a pass in float32 runs over half-precision weights and leaves them as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

__all__ = ["AttentionHeads", "LayerNorm", "Linear", "Reader", "RmsNorm", "UnknownModelError", "project", "rotate"]

# Rotary positions of which the frequencies do not depend on how long the rows of a batch are.
_STEADY_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})


class UnknownModelError(Exception):
    """The model is not, in every detail, one that the packed forward pass computes."""


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight.T + bias`."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (T, in); returns (T, out)."""
        return functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def part(self, start: int, end: int) -> "Linear":
        """Return the layer that gives only these of the outputs."""
        return Linear(self.weight[start:end], None if self.bias is None else self.bias[start:end])


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer normalization over the last dimension."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (T, d)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, self.eps)


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root mean square normalization over the last dimension."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to (.., d)."""
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """How many heads queries and keys have, and their size."""

    query: int
    key: int
    size: int


class Reader:
    """Takes parts out of a transformers model, by the names of its modules.

    Raises, from each method:
        UnknownModelError: the model has no such part, or another kind of it (a quantized layer, an adapter).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._left = {name for name, _ in model.named_parameters()}

    def linear(self, name: str) -> Linear:
        """Return a linear layer."""
        module = self._take(name, nn.Linear)
        return Linear(module.weight.data, None if module.bias is None else module.bias.data)

    def fused(self, *names: str) -> Linear:
        """Return one linear layer with the outputs of several.

        Those go on with views of its memory, so that the model still works and nothing is held twice.
        """
        modules = [self._take(name, nn.Linear) for name in names]
        sizes = [module.out_features for module in modules]
        weight = torch.cat([module.weight.data for module in modules])
        bias = None
        if all(module.bias is not None for module in modules):
            bias = torch.cat([module.bias.data for module in modules])
            for module, part in zip(modules, torch.split(bias, sizes), strict=True):
                module.bias.data = part
        elif any(module.bias is not None for module in modules):
            raise UnknownModelError(f"only some of {', '.join(names)} have a bias")
        for module, part in zip(modules, torch.split(weight, sizes), strict=True):
            module.weight.data = part
        return Linear(weight, bias)

    def layer_norm(self, name: str) -> LayerNorm:
        """Return a layer normalization."""
        module = self._take(name, nn.LayerNorm)
        return LayerNorm(module.weight.data, None if module.bias is None else module.bias.data, module.eps)

    def rms_norm(self, name: str) -> RmsNorm:
        """Return a root mean square normalization, of which each architecture has its own class."""
        module = self._take(name, nn.Module)
        return RmsNorm(module.weight.data, module.variance_epsilon)

    def table(self, name: str) -> torch.Tensor:
        """Return the rows of an embedding."""
        weight: torch.Tensor = self._take(name, nn.Embedding).weight.data
        return weight

    def rotary(self, name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """Return the model's own module that gives cosines and sines of positions, in the dtype of its argument."""
        module = self._take(name, nn.Module)
        kinds = module.rope_type.values() if isinstance(module.rope_type, dict) else [module.rope_type]
        if not _STEADY_ROTARY.issuperset(kinds):
            raise UnknownModelError(f"rotary positions of the kind {', '.join(kinds)}")
        found: Callable[..., tuple[torch.Tensor, torch.Tensor]] = module
        return found

    def activation(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return an activation function by the name that a config gives it."""
        if name not in ACT2FN:
            raise UnknownModelError(f"the activation {name}")
        found: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[name]
        return found

    def finish(self, *, unused: Sequence[str] = ()) -> None:
        """Refuse a model with weights that nothing took, except those whose names begin with one of `unused`."""
        left = sorted(name for name in self._left if not name.startswith(tuple(unused)))
        if left:
            raise UnknownModelError(f"weights that are not known: {', '.join(left[:3])}")

    def _take(self, name: str, kind: type[nn.Module]) -> Any:
        try:
            module = self._model.get_submodule(name)
        except AttributeError:
            raise UnknownModelError(f"it has no {name}") from None
        if type(module) is not kind and kind is not nn.Module:
            raise UnknownModelError(f"{name} is a {type(module).__name__}")
        self._left -= {f"{name}.{own}" for own, _ in module.named_parameters()}
        return module


def project(
    qkv: Linear, x: torch.Tensor, heads: AttentionHeads, picks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries (_, heads, size), keys and values (T, key heads, size); queries of picked tokens only, if any."""
    width, key_width = heads.query * heads.size, heads.key * heads.size
    if picks is None:
        parts = torch.split(qkv(x), [width, key_width, key_width], dim=1)
    else:
        rest = qkv.part(width, width + 2 * key_width)(x)
        parts = (qkv.part(0, width)(x[picks]), *torch.split(rest, key_width, dim=1))
    query, key, value = (part.view(len(part), -1, heads.size) for part in parts)
    return query, key, value


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn (T, heads, size) by rotary positions (T, 1, size), as transformers lays the halves out."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
