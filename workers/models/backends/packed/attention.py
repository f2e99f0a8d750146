"""Attention within each row of a flat batch.

Owns the choice of the kernel: flash attention over rows of any length by torch's public `varlen_attn` on a GPU in half
precision; else one row after the other by `scaled_dot_product_attention`, which is the reference and slow.
"""

import itertools
import logging

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from workers.models.backends.packed.flat import Spans

__all__ = ["CAUSAL", "FULL", "Window", "attend", "attend_by_flash", "attend_row_by_row"]

# How far a token sees to the left and to the right; -1: to the end of its row.
Window = tuple[int, int]
FULL: Window = (-1, -1)
CAUSAL: Window = (-1, 0)

# It writes a line for each call at level INFO.
logging.getLogger(varlen_attn.__module__).setLevel(logging.WARNING)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: tuple[Spans, Spans], window: Window
) -> torch.Tensor:
    """Return what each query token gathers from its row.

    Args:
        query: shape (Tq, heads, size).
        key: shape (Tk, key heads, size); each serves the same number of query heads.
        value: the same shape.
        spans: the rows of the queries, and as many of the keys.
        window: how far a token sees. Anything but `FULL` needs a query for each key.

    Returns:
        shape (Tq, heads, size).
    """
    by_flash = query.is_cuda and query.dtype in {torch.float16, torch.bfloat16}
    return (attend_by_flash if by_flash else attend_row_by_row)(query, key, value, spans, window)


def attend_by_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: tuple[Spans, Spans], window: Window
) -> torch.Tensor:
    """See `attend`. Needs a GPU of compute capability 8.0 or later, and half precision."""
    queries, keys = spans
    edges = queries.edges, keys.edges
    grouped = query.shape[1] != key.shape[1]
    out = varlen_attn(query, key, value, *edges, queries.longest, keys.longest, window_size=window, enable_gqa=grouped)
    assert isinstance(out, torch.Tensor)  # noqa: S101 - it returns a pair only where that is asked for
    return out


def attend_row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: tuple[Spans, Spans], window: Window
) -> torch.Tensor:
    """See `attend`. Waits for the device, and runs everywhere in every precision."""
    out = torch.empty_like(query)
    rows = (itertools.pairwise(one.edges.tolist()) for one in spans)
    for (start, end), (key_start, key_end) in zip(*rows, strict=True):
        if start == end:
            continue
        parts = query[start:end], key[key_start:key_end], value[key_start:key_end]
        own, keys, values = (part.transpose(0, 1)[None] for part in parts)
        mask = None if window == FULL else _mask(end - start, window, query.device)
        gathered = scaled_dot_product_attention(own, keys, values, attn_mask=mask, enable_gqa=True)
        out[start:end] = gathered[0].transpose(0, 1)
    return out


def _mask(length: int, window: Window, device: torch.device) -> torch.Tensor:
    """Return which keys each token of a row sees, bool, shape (length, length)."""
    left, right = (length if side < 0 else side for side in window)
    places = torch.arange(length, device=device)
    ahead = places[None, :] - places[:, None]
    return (ahead >= -left) & (ahead <= right)
