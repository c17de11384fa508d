"""Going through a large tensor in row tiles and summing what is computed there to the units of a group."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch

from graphprune.graph import Member

#: Elements of a tile: on a CPU half a megabyte, of which its caches hold two, and beside which the Python around a tile
#: costs little. Elsewhere a sixteenth of the tensor, because a tile computation holds up to four tiles at once and must
#: stay below a quarter of it; bounded above, where launching a kernel costs nothing in comparison.
_SMALLEST, _LARGEST = 2**17, 2**22


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 if it is that already: half precision overflows when squared."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def tile_rows(shape: Sequence[int], device: torch.device) -> int:
    """How many rows a tile of a tensor on ``device`` has, seen as a matrix ``(-1, last dimension)``."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    elements = _SMALLEST if device.type == "cpu" else min(max(rows * columns // 16, _SMALLEST), _LARGEST)
    return max(1, min(elements // max(columns, 1), rows))


def row_tiles(shape: Sequence[int], device: torch.device) -> Iterator[tuple[int, int]]:
    """Row ranges ``(start, stop)`` that cover a tensor seen as a matrix ``(-1, last dimension)``."""
    rows = math.prod(shape[:-1])
    step = tile_rows(shape, device)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def sum_tiles(
    member: Member,
    shape: Sequence[int],
    device: torch.device,
    tile: Callable[[int, int], torch.Tensor],
    power: Literal[1, 2] | None = None,
) -> torch.Tensor:
    """Sums an element-wise quantity over everything but the member's dimension, without holding it whole.

    Args:
        member: the dimension to keep.
        shape: of the tensor.
        device: where it is computed.
        tile: gives rows ``start:stop`` of the quantity, seen as a matrix ``(-1, last dimension)``.
        power: sum this power of its absolute value instead; what ``tile`` gave is overwritten.

    Returns:
        A vector of shape ``(member.length,)``; :meth:`~graphprune.graph.Member.gather` sums it to units.
    """
    if member.dim % len(shape) == len(shape) - 1:
        return functools.reduce(torch.add, (_column_sums(tile(*rows), power) for rows in row_tiles(shape, device)))
    row_sums = torch.cat([_row_norms(tile(*rows), power) for rows in row_tiles(shape, device)])
    if power is not None:
        row_sums = row_sums.pow_(power)
    rest = [d for d in range(len(shape) - 1) if d != member.dim % len(shape)]
    return row_sums.reshape(tuple(shape[:-1])).sum(dim=rest) if rest else row_sums.reshape(tuple(shape[:-1]))


def _row_norms(tile: torch.Tensor, power: Literal[1, 2] | None) -> torch.Tensor:
    """Sums of rows, or their norms, which take one pass over a tile where a power and a sum take three."""
    return tile.sum(dim=1) if power is None else torch.linalg.vector_norm(tile, ord=power, dim=1)


def _column_sums(tile: torch.Tensor, power: Literal[1, 2] | None) -> torch.Tensor:
    return (tile if power is None else tile.abs_() if power == 1 else tile.square_()).sum(dim=0)
