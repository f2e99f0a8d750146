"""The parts of the packed forward pass: attention within rows, and rows in one array."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from config.catalog import ModelCard
from tests.support.checkpoints import make_checkpoint
from tests.support.packed import weights_of
from workers.models.backends.packed import attention, bert, modernbert, qwen
from workers.models.backends.packed.architectures import make_packed_model
from workers.models.backends.packed.attention import CAUSAL, FULL, attend_by_flash, attend_row_by_row
from workers.models.backends.packed.flat import Flat, Shape, Spans, write_rows
from workers.models.tokenizing.tokenizer import Tokens


@pytest.mark.parametrize("window", [FULL, CAUSAL, (3, 3), (2, 0)])
def test_attention_row_by_row_is_softmax_over_what_a_token_sees(window: tuple[int, int]) -> None:
    torch.manual_seed(0)
    lengths = [4, 1, 0, 9]
    edges = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    query, key, value = torch.randn(14, 4, 8), torch.randn(14, 2, 8), torch.randn(14, 2, 8)
    out = attend_row_by_row(query, key, value, (Spans(edges, 9), Spans(edges, 9)), window)
    for row, (start, end) in enumerate(itertools.pairwise(edges.tolist())):
        for at, head in itertools.product(range(end - start), range(4)):
            left = 0 if window[0] < 0 else max(0, at - window[0])
            right = end - start if window[1] < 0 else min(end - start, at + window[1] + 1)
            seen = slice(start + left, start + right)
            weights = torch.softmax(key[seen, head // 2] @ query[start + at, head] / 8**0.5, 0)
            expected = weights @ value[seen, head // 2]
            torch.testing.assert_close(out[start + at, head], expected, msg=f"row {row}, token {at}")


@pytest.mark.parametrize("window", [FULL, CAUSAL, (64, 64)])
def test_flash_attention_takes_what_it_is_given(window: tuple[int, int]) -> None:
    """Traced without a device: torch checks the arguments and derives the shape."""
    edges = torch.empty(4, dtype=torch.int32, device="meta")
    query, key = (torch.empty(50, heads, 64, dtype=torch.float16, device="meta") for heads in (8, 2))
    out = attend_by_flash(query, key, key, (Spans(edges, 30), Spans(edges, 30)), window)
    assert (out.shape, out.dtype) == (query.shape, torch.float16)


@pytest.mark.parametrize("name", ["bert", "bert-mean", "modernbert", "modernbert-mean", "qwen3"])
def test_a_whole_pass_by_flash_attention_fits_together(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced without a device as well: every shape and dtype of what a GPU would run."""
    for body in (bert, modernbert, qwen):
        monkeypatch.setattr(body, "attend", attend_by_flash)
    weights = weights_of(ModelCard(**make_checkpoint(name, tmp_path / name)), "float16")
    model = make_packed_model(weights.module.to("meta"), weights.pooling)
    shape = Shape(50, 4)
    with torch.inference_mode():
        flat = Flat.over(torch.empty(shape.size, dtype=torch.int32, device="meta"), shape, 30)
        values = model.values(flat, torch.float16)
    assert (tuple(values.shape), values.dtype) == ((4, 64), torch.float32)


def test_torch_writes_no_line_for_each_attention() -> None:
    assert not logging.getLogger(attention.varlen_attn.__module__).isEnabledFor(logging.INFO)


def test_types_and_places_of_a_flat_batch_are_those_of_its_rows() -> None:
    rows = [Tokens(np.array([7, 8, 9], np.int32), second_at=2), Tokens(np.array([5], np.int32))]
    shape = Shape(6, 4)
    array = np.full(shape.size, 99, np.int32)
    write_rows(rows, shape, array)
    flat = Flat.over(torch.from_numpy(array), shape, 6)
    assert flat.ids.tolist() == [7, 8, 9, 5, 0, 0]
    assert flat.row_of.tolist() == [0, 0, 0, 1, 3, 3]
    assert flat.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert flat.types.tolist() == [0, 0, 1, 0, 0, 0]
    assert flat.lengths.tolist() == [3, 1, 0, 2]
    assert flat.first_tokens().tolist()[:2] == [0, 3]
    assert flat.last_tokens().tolist()[:2] == [2, 3]
