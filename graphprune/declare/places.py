"""Where the units of two groups lie in one dimension, and how they relate there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from graphprune.declared import Strides
from graphprune.graph import Block

Relation = Literal["apart", "across", "within", "against"]


def even_blocks(size: int, start: int, length: int, *, interleaved: bool = False) -> tuple[Block, ...]:
    """``length`` indices from ``start`` on, shared evenly among ``size`` units: one after the other, or in turns."""
    each = length // size
    if interleaved:
        return (Block(start=start, unit_stride=1, loops=((each, size),) if each > 1 else ()),)
    return (Block(start=start, unit_stride=each, loops=((each, 1),) if each > 1 else ()),)


def strided_blocks(strides: Sequence[Strides]) -> tuple[Block, ...]:
    """Declared blocks as those of the graph."""
    return tuple(Block(start=s.start, unit_stride=s.unit_stride, loops=s.loops) for s in strides)


def owners(blocks: Sequence[Block], size: int, length: int) -> torch.Tensor | str:
    """For every index the unit that owns it, or -1: int64 of shape ``(length,)``; or what is wrong with the blocks."""
    owner = torch.full((length,), -1, dtype=torch.int64)
    units = torch.arange(size)
    for block in blocks:
        where = (block.offsets()[:, None] + units * block.unit_stride).reshape(-1)
        if int(where.max()) >= length:
            return f"expected places below {length}, the length of the dimension, got {int(where.max())}"
        values, counts = torch.unique(where, return_counts=True)
        twice = [*values[counts > 1].tolist(), *where[owner[where] >= 0].tolist()]
        if twice:
            return f"expected every index in one unit only, but index {min(twice)} is in two"
        owner[where] = units.repeat(len(where) // size)
    return owner


def relate(mine: torch.Tensor, theirs: torch.Tensor, size: int, other: int) -> tuple[Relation, torch.Tensor]:
    """How the units of two groups relate in a dimension.

    Args:
        mine: the owners by this group, int64 of shape ``(length,)``, -1 for none.
        theirs: those by the other group.
        size: units of this group.
        other: units of the other group.

    Returns:
        ``apart``: they share no index. ``within``: every unit of the other group lies in one unit of this one, as the
        second value says: int64 of shape ``(other,)``, -1 for units that share nothing. ``across``: every unit of one
        meets every unit of the other alike, as rows and columns do. ``against``: none of these.
    """
    shared = (mine >= 0) & (theirs >= 0)
    inside = torch.full((other,), -1, dtype=torch.int64)
    if not bool(shared.any()):
        return "apart", inside
    pairs, counts = torch.unique(theirs[shared] * size + mine[shared], return_counts=True)
    units, at = pairs // size, pairs % size
    if len(units.unique()) == len(units):
        inside[units] = at
        return "within", inside
    if len(pairs) == size * other and bool((counts == counts[0]).all()):
        return "across", inside
    return "against", inside


def fit(owner: torch.Tensor, size: int) -> tuple[Block, ...] | None:
    """Blocks that give these owners; None where units differ in shape, or do not follow each other evenly."""
    places = [torch.nonzero(owner == unit).flatten() for unit in range(size)]
    if len({len(p) for p in places}) != 1 or not len(places[0]):
        return None
    table = torch.stack(places)
    strides = table[1] - table[0] if size > 1 else torch.ones_like(table[0])
    if not bool((table == table[0] + torch.arange(size)[:, None] * strides).all()) or bool((strides < 1).any()):
        return None
    blocks: list[Block] = []
    first, steps = table[0].tolist(), strides.tolist()
    start = 0
    while start < len(first):
        stop = _run(first, steps, start)
        loops = ((stop - start, first[start + 1] - first[start]),) if stop - start > 1 else ()
        blocks.append(Block(start=first[start], unit_stride=steps[start], loops=loops))
        start = stop
    return tuple(blocks)


def _run(first: list[int], steps: list[int], start: int) -> int:
    """Where the arithmetic progression that begins at ``start`` ends."""
    stop = start + 1
    while stop < len(first) and steps[stop] == steps[start]:
        if first[stop] - first[stop - 1] != first[start + 1] - first[start]:
            break
        stop += 1
    return stop
