"""Which loaded models the packed forward pass computes: those that it knows in every detail.

Owns that decision, and the heads of cross-encoders. All else (another architecture, another pooling, an adapter, a
quantized layer) is refused, and is the padded backend's. What follows the pooling is the loaded module's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from workers.models.backends.packed.bert import BERT_TYPES, BertBody
from workers.models.backends.packed.layers import Reader, UnknownModelError
from workers.models.backends.packed.model import Body, MultiVectorHeads, PackedModel
from workers.models.backends.packed.modernbert import MODERNBERT_TYPES, ModernBertBody
from workers.models.backends.packed.qwen import QWEN_TYPES, QwenBody
from workers.models.families import Embedder, MultiVectorEmbedder, Scorer

__all__ = ["make_packed_model"]

_POOLINGS = frozenset({"cls", "mean", "last_token"})
_MULTI_VECTOR_PARTS = {"transformer", "steps", "sparse_linear", "colbert_linear"}


def make_packed_model(module: nn.Module, pooling: str) -> PackedModel:
    """Return the packed form of one of the modules of `families`, over the same weights; the module stays usable.

    Args:
        module: on the device that it will run on.
        pooling: of an embedder; empty for a scorer.

    Raises:
        UnknownModelError: it is not known in every detail; the message says what is not.
    """
    model = getattr(module, "transformer", None)
    if not isinstance(model, nn.Module) or not type(model).__module__.startswith("transformers."):
        raise UnknownModelError("it is not a model of transformers")
    read = Reader(model)
    if type(module) is Scorer:
        return _scorer(model, read)
    if pooling not in _POOLINGS:
        raise UnknownModelError(f"pooling by {pooling}")
    if type(module) is Embedder and _children(module) == {"transformer", "steps"}:
        return _embedder(module, model, read, pooling)
    if type(module) is MultiVectorEmbedder and _children(module) == _MULTI_VECTOR_PARTS:
        own = Reader(module)
        heads = MultiVectorHeads(own.linear("sparse_linear"), own.linear("colbert_linear"), module.silent)
        return _embedder(module, model, read, pooling, heads)
    raise UnknownModelError(f"a {type(module).__name__} with {', '.join(sorted(_children(module)))}")


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _embedder(
    module: Embedder, model: nn.Module, read: Reader, pooling: str, heads: MultiVectorHeads | None = None
) -> PackedModel:
    body = _body(model.config, read, "")
    # BERT's own pooler serves another purpose, and nobody reads it.
    read.finish(unused=("pooler.",))
    return PackedModel(body, pooling, lambda pooled: module.finish(pooled.float()), heads)


def _body(config: Any, read: Reader, prefix: str) -> Body:
    kinds: list[tuple[frozenset[str], Callable[[Any, Reader, str], Body]]] = [
        (BERT_TYPES, BertBody),
        (MODERNBERT_TYPES, ModernBertBody),
        (QWEN_TYPES, QwenBody),
    ]
    for types, make in kinds:
        if config.model_type in types:
            return make(config, read, prefix)
    raise UnknownModelError(f"the architecture {config.model_type}")


def _scorer(model: nn.Module, read: Reader) -> PackedModel:
    config: Any = model.config
    heads = {
        "BertForSequenceClassification": _bert_head,
        "RobertaForSequenceClassification": _roberta_head,
        "XLMRobertaForSequenceClassification": _roberta_head,
        "CamembertForSequenceClassification": _roberta_head,
        "ModernBertForSequenceClassification": _modernbert_head,
    }
    kind = type(model).__name__
    if kind not in heads or config.num_labels != 1:
        raise UnknownModelError(f"a {kind} with {config.num_labels} labels")
    body = _body(config, read, f"{model.base_model_prefix}.")
    head = heads[kind](config, read)
    read.finish()

    def score(pooled: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(head(pooled).float().view(-1))

    return PackedModel(body, getattr(config, "classifier_pooling", "cls"), score)


Head = Callable[[torch.Tensor], torch.Tensor]


def _bert_head(_config: Any, read: Reader) -> Head:
    pooler, classifier = read.linear("bert.pooler.dense"), read.linear("classifier")
    return lambda pooled: classifier(torch.tanh(pooler(pooled)))


def _roberta_head(_config: Any, read: Reader) -> Head:
    dense, out = read.linear("classifier.dense"), read.linear("classifier.out_proj")
    return lambda pooled: out(torch.tanh(dense(pooled)))


def _modernbert_head(config: Any, read: Reader) -> Head:
    dense, norm, classifier = read.linear("head.dense"), read.layer_norm("head.norm"), read.linear("classifier")
    activation = read.activation(config.classifier_activation)
    return lambda pooled: classifier(norm(activation(dense(pooled))))
