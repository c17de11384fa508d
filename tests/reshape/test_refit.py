"""Axes in dimensions that have closed up."""

import torch

from graphprune.graph import Axis, Block
from graphprune.reshape.refit import refit


def test_places_close_up():
    """Three units of two indices, each twice; the first unit goes, and of the others what lies beside the second."""
    axis = Axis(size=3, length=12, blocks=(Block(start=0, unit_stride=2, loops=((2, 6), (2, 1))),))
    stays = torch.ones(12, dtype=torch.bool)
    stays[[0, 1, 6, 7]] = False
    assert refit(axis, [1, 2], stays) == Axis(
        size=2, length=8, blocks=(Block(start=0, unit_stride=2, loops=((2, 4), (2, 1))),)
    )


def test_places_that_are_uneven_are_no_blocks():
    axis = Axis(size=2, length=6, blocks=(Block(start=0, unit_stride=3, loops=((3, 1),)),))
    stays = torch.ones(6, dtype=torch.bool)
    stays[1] = False
    assert refit(axis, [0, 1], stays) is None
