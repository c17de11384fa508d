"""Numbers are moved as bits."""

import numpy as np
import pytest
import torch

from graphprune.stream.numbers import divisions, raw, taken, tensor_of


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float8_e5m2, torch.bool, torch.int32])
def test_there_and_back(kind):
    tensor = torch.tensor([1, 0, 3]).to(kind)
    assert torch.equal(tensor_of(raw(tensor), kind).view(torch.uint8), tensor.view(torch.uint8))


def test_rows_that_are_large_are_divided(monkeypatch):
    monkeypatch.setattr("graphprune.stream.numbers.PIECE", 4)
    numbers = np.arange(2 * 5 * 64, dtype=np.uint8).reshape(2, 5, 64)
    index = [None, np.array([0, 4]), np.array([3, 1])]
    pieces = list(taken(numbers, index))
    assert len(pieces) > 2
    assert np.array_equal(np.concatenate([p.reshape(-1) for p in pieces]), numbers[:, [0, 4]][..., [3, 1]].reshape(-1))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((6, 8), (6, 8), [([0], [0]), ([1], [1])]),
        ((6, 8), (2, 3, 8), [([0], [0, 1]), ([1], [2])]),
        ((2, 3, 8), (6, 4, 2), [([0, 1], [0]), ([2], [1, 2])]),
        ((4, 6), (24,), [([0, 1], [0])]),
    ],
)
def test_divisions(old, new, expected):
    assert list(divisions(old, new)) == expected
