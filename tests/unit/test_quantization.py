"""Vectors in fewer bytes: exact values for known vectors, and what survives of a comparison."""

import numpy as np
import pytest

from app.vector_formats import quantize

ROWS = np.array([[1.0, -0.5, 0.0, 0.25], [-0.2, 0.1, 0.1, -0.1]], np.float32)


def test_int8_takes_the_largest_magnitude_to_127() -> None:
    assert quantize(ROWS, "int8").tolist() == [[127, -64, 0, 32], [-127, 64, 64, -64]]


def test_uint8_is_int8_moved_by_128() -> None:
    assert quantize(ROWS, "uint8").tolist() == [[255, 64, 128, 160], [1, 192, 192, 64]]


def test_binary_has_the_highest_bit_first_and_zero_is_no_bit() -> None:
    row = np.array([[0.1, -0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2]], np.float32)
    assert quantize(row, "ubinary").tolist() == [[0b10011111, 0b10000000]]
    assert quantize(row, "binary").tolist() == [[0b10011111 - 128, 0]]


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_a_vector_of_zeros_is_no_division_by_zero(precision: str) -> None:
    assert len(quantize(np.zeros((2, 8), np.float32), precision)) == 2  # type: ignore[arg-type]
    assert len(quantize(np.zeros((0, 8), np.float32), precision)) == 0  # type: ignore[arg-type]


def test_cosines_survive_int8() -> None:
    rows = np.random.default_rng(7).normal(size=(200, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    small = quantize(rows, "int8").astype(np.float32)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    np.testing.assert_allclose(small @ small.T, rows @ rows.T, atol=0.01)
