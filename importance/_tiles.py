"""Going through a large tensor in row tiles and summing what is computed there to the units of a group."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from graphprune.graph import Member

#: Elements of a tile: a sixteenth of the tensor, because a tile computation holds up to four tiles at once
#: and must stay below a quarter of it; bounded below, where Python would cost more than memory, and above: on a CPU
#: by what its caches hold, elsewhere by where launching a kernel costs nothing in comparison.
_SMALLEST, _LARGEST_ON_CPU, _LARGEST = 2**16, 2**17, 2**22


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 if it is that already: half precision overflows when squared."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def tile_rows(shape: Sequence[int], device: torch.device) -> int:
    """How many rows a tile of a tensor on ``device`` has, seen as a matrix ``(-1, last dimension)``."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    largest = _LARGEST_ON_CPU if device.type == "cpu" else _LARGEST
    elements = min(max(rows * columns // 16, _SMALLEST), largest)
    return max(1, min(elements // max(columns, 1), rows))


def row_tiles(shape: Sequence[int], device: torch.device) -> Iterator[tuple[int, int]]:
    """Row ranges ``(start, stop)`` that cover a tensor seen as a matrix ``(-1, last dimension)``."""
    rows = math.prod(shape[:-1])
    step = tile_rows(shape, device)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def sum_tiles(
    member: Member, shape: Sequence[int], device: torch.device, tile: Callable[[int, int], torch.Tensor]
) -> torch.Tensor:
    """Sums an element-wise quantity over everything but the member's dimension, without holding it whole.

    Args:
        member: the dimension to keep.
        shape: of the tensor.
        device: where it is computed.
        tile: gives rows ``start:stop`` of the quantity, seen as a matrix ``(-1, last dimension)``.

    Returns:
        A vector of shape ``(member.length,)``; :meth:`~graphprune.graph.Member.gather` sums it to units.
    """
    if member.dim % len(shape) == len(shape) - 1:
        return functools.reduce(torch.add, (tile(*rows).sum(dim=0) for rows in row_tiles(shape, device)))
    row_sums = torch.cat([tile(*rows).sum(dim=1) for rows in row_tiles(shape, device)]).reshape(tuple(shape[:-1]))
    rest = [d for d in range(row_sums.ndim) if d != member.dim % len(shape)]
    return row_sums.sum(dim=rest) if rest else row_sums
