"""The packed backend where it computes what the padded one does, and the padded one where it does not.

Owns that choice at load, and saying why.
"""

import logging

import torch

from config.catalog import ModelCard
from workers.models.backends.base import Backend
from workers.models.backends.packed.architectures import make_packed_model
from workers.models.backends.packed.backend import PackedBackend
from workers.models.backends.packed.graphs import BUCKETS, CudaRecorder, GraphStream
from workers.models.backends.packed.layers import UnknownModelError
from workers.models.backends.packed.model import PackedModel
from workers.models.backends.packed.parity import agree, check_rows
from workers.models.backends.torch import TorchBackend
from workers.models.tokenizing.tokenizer import Tokens
from workers.models.weights import Weights

__all__ = ["pack"]

log = logging.getLogger(__name__)


def pack(card: ModelCard, weights: Weights, padded: TorchBackend) -> tuple[Backend, str]:
    """Return a packed backend over the padded one's weights, or the padded one and why it has to be that."""
    rows = check_rows(card, weights.tokenizer)
    try:
        model = make_packed_model(weights.module, weights.pooling)
        bulk = PackedBackend(model, padded)
        equal, worst = agree(padded, bulk, rows)
    except (UnknownModelError, RuntimeError) as error:
        # A card that is too old for flash attention says so in a RuntimeError.
        return _fall_back(card, padded, str(error))
    if not equal:
        return _fall_back(card, padded, f"its values differ from the padded ones by {worst:.2g}")
    log.info("%s: packed; values differ from padded ones by at most %.2g over %d texts", card.name, worst, len(rows))
    if not padded.device.startswith("cuda"):
        return bulk, ""
    return PackedBackend(model, padded, latency_stream=_record(card, model, bulk, rows)), ""


def _fall_back(card: ModelCard, padded: TorchBackend, reason: str) -> tuple[Backend, str]:
    log.warning("%s: computed with padding, since the packed forward pass cannot be used: %s", card.name, reason)
    padded.free_memory()
    return padded, f"computed with padding: {reason}"


def _record(card: ModelCard, model: PackedModel, bulk: PackedBackend, rows: list[Tokens]) -> GraphStream | None:
    """Record the small passes; None where that fails, and interactive rows share the passes' one stream."""
    before = torch.cuda.memory_reserved()
    try:
        stream = GraphStream(model, bulk, CudaRecorder(bulk.device), BUCKETS)
        equal, worst = agree(bulk, stream, [row for row in rows if len(row) <= BUCKETS[-1].tokens])
        reason = f"their values differ by {worst:.2g}"
    except RuntimeError as error:
        equal, reason = False, str(error)
    if not equal:
        log.warning("%s: small passes are not recorded as CUDA graphs: %s", card.name, reason)
        bulk.free_memory()
        return None
    bulk.free_memory()
    held_mb = (torch.cuda.memory_reserved() - before) / 2**20
    log.info("%s: %d small passes recorded as CUDA graphs, %.0f MB", card.name, len(BUCKETS), held_mb)
    return stream
