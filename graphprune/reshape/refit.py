"""Where the units of an axis lie once others are cut out and the rest has closed up."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphprune.graph import Axis, Block


def refit(axis: Axis, kept: Sequence[int], stays: torch.Tensor) -> Axis | None:
    """``axis`` with the units ``kept`` only, in a dimension of which the flagged indices are left and close up.

    None where what is left of a block is no block any more.
    """
    only = None if axis.only is None else kept.index(axis.only)
    if only is not None and bool(stays.all()):
        return Axis(size=len(kept), length=axis.length, blocks=axis.blocks, only=only)
    position = stays.long().cumsum(0) - 1
    blocks = []
    for block in axis.blocks:
        found = _refit_block(block, kept if axis.only is None else (0,), stays, position)
        if found is None:
            return None
        blocks.append(found)
    return Axis(size=len(kept), length=int(stays.sum()), blocks=tuple(blocks), only=only)


def _refit_block(block: Block, kept: Sequence[int], stays: torch.Tensor, position: torch.Tensor) -> Block | None:
    where = torch.tensor(kept)[:, None] * block.unit_stride + block.offsets()
    flags = stays[where]
    if not bool(flags[0].any()) or not bool((flags == flags[0]).all()):
        return None
    table = position[where[:, flags[0]]]
    stride = int(table[1, 0] - table[0, 0]) if len(kept) > 1 else table.shape[1]
    if not bool((table == table[0] + torch.arange(len(kept))[:, None] * stride).all()):
        return None
    loops = _loops(table[0])
    return None if loops is None else Block(start=int(table[0, 0]), unit_stride=stride, loops=loops)


def _loops(offsets: torch.Tensor) -> tuple[tuple[int, int], ...] | None:
    """Nested strides that give these sorted offsets, outermost first; None where there are none."""
    if len(offsets) == 1:
        return ()
    steps = offsets.diff()
    other = (steps != steps[0]).nonzero()
    run, stride = int(other[0]) + 1 if len(other) else len(offsets), int(steps[0])
    if len(offsets) % run:
        return None
    rows = offsets.reshape(-1, run)
    if not bool((rows == rows[:, :1] + torch.arange(run) * stride).all()):
        return None
    outer = _loops(rows[:, 0])
    return None if outer is None else (*outer, (run, stride))
