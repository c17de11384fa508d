"""Numbers as they lie in a file: integers of the width of a dtype, of which some are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

Numbers = np.ndarray[Any, Any]

#: About how many bytes are looked at at a time: they are picked, hashed and written from the processor's cache.
PIECE = 1 << 20


def raw(tensor: torch.Tensor) -> Numbers:
    """The numbers of a contiguous tensor as unsigned integers of their width."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(bits[tensor.element_size()]).numpy()


def tensor_of(numbers: Numbers, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of ``dtype`` that integers of its width stand for."""
    return torch.from_numpy(numbers.view(f"i{numbers.itemsize}" if numbers.itemsize > 1 else "u1")).view(dtype)


def taken(numbers: Numbers, index: Sequence[Numbers | None]) -> Iterator[Numbers]:
    """What ``index`` picks of every dimension, in order, some rows at a time."""
    if numbers.ndim == 0 or numbers.size == 0:
        yield numbers
        return
    first, rest = index[0], index[1:]
    row = max(1, numbers[:1].nbytes)
    if row > 64 * PIECE and numbers.ndim > 1:
        for i in range(len(numbers)) if first is None else first:
            yield from taken(numbers[i], rest)
        return
    count, step = len(numbers) if first is None else len(first), max(1, PIECE // row)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        part = numbers[rows] if first is None else numbers.take(first[rows], axis=0)
        for axis, kept in enumerate(rest, start=1):
            part = part if kept is None else part.take(kept, axis=axis)
        yield part


def divisions(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions, of one shape and of the other, that hold the same numbers."""
    i = j = 0
    while i < len(old) or j < len(new):
        mine, other = [i] if i < len(old) else [], [j] if j < len(new) else []
        size = old[i] if mine else 1
        goal = new[j] if other else 1
        i, j = i + len(mine), j + len(other)
        while size != goal:
            if size < goal:
                size, i = size * old[i], i + 1
                mine.append(i - 1)
            else:
                goal, j = goal * new[j], j + 1
                other.append(j - 1)
        yield mine, other
