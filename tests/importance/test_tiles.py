"""Row tiles cover a tensor once, stay small, and sum to the same."""

import pytest
import torch

from graphprune.importance import _tiles
from graphprune.importance._tiles import exact, row_tiles, sum_tiles


@pytest.mark.parametrize("shape", [(1,), (7,), (4096, 4096), (3, 5), (8, 2048, 512), (100_000, 64), (2, 10_000_000)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tiles_cover_every_row_once_and_stay_below_a_sixteenth(shape, device):
    rows, size = torch.Size(shape[:-1]).numel(), torch.Size(shape).numel()
    tiles = list(row_tiles(shape, torch.device(device)))
    assert [start for start, _ in tiles] == [0, *(stop for _, stop in tiles[:-1])]
    assert tiles[-1][1] == rows
    for start, stop in tiles:
        elements = (stop - start) * shape[-1]
        assert stop - start == 1 or elements <= max(size // 16, 2**17)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_sums_over_all_but_one_dimension(toy, dim, monkeypatch):
    monkeypatch.setattr(_tiles, "_SMALLEST", 1)
    value = torch.randn(4, 6, 5, dtype=torch.float64)
    flat = value.reshape(-1, 5)
    m = toy.member("x", dim, value.shape[dim], value.shape[dim])
    rest = [d for d in range(3) if d != dim]
    torch.testing.assert_close(sum_tiles(m, value.shape, value.device, lambda a, b: flat[a:b]), value.sum(dim=rest))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("power", [1, 2])
def test_sums_of_powers_over_all_but_one_dimension(toy, dim, power, monkeypatch):
    monkeypatch.setattr(_tiles, "_SMALLEST", 1)
    value = torch.randn(4, 6, 5, dtype=torch.float64)
    flat = value.reshape(-1, 5)
    m = toy.member("x", dim, value.shape[dim], value.shape[dim])
    rest = [d for d in range(3) if d != dim]
    got = sum_tiles(m, value.shape, value.device, lambda a, b: flat[a:b].clone(), power)
    torch.testing.assert_close(got, value.abs().pow(power).sum(dim=rest))


def test_half_precision_is_widened_and_double_kept():
    assert exact(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert exact(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert exact(torch.ones(1, dtype=torch.int64)).dtype == torch.float32
