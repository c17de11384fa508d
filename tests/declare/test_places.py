"""How the units of two groups relate along one dimension."""

import pytest
import torch

from graphprune.declare.places import even_blocks, fit, owners, relate, strided_blocks
from graphprune.declared import Strides
from graphprune.graph import Axis, Block


def axis(size, length, *blocks):
    return Axis(size=size, length=length, blocks=blocks).unit_of()


HEADS = axis(3, 12, Block(start=0, unit_stride=4, loops=((4, 1),)))  # 000011112222
SIZES = axis(4, 12, Block(start=0, unit_stride=1, loops=((3, 4),)))  # 012301230123
EACH = torch.arange(12)
LATER = axis(2, 12, Block(start=6, unit_stride=3, loops=((3, 1),)))


@pytest.mark.parametrize(
    ("mine", "theirs", "size", "other", "relation"),
    [
        (HEADS, SIZES, 3, 4, "across"),
        (HEADS, HEADS, 3, 3, "within"),
        (HEADS, EACH, 3, 12, "within"),
        (EACH, HEADS, 12, 3, "against"),  # declared units are finer than what was traced
        (HEADS, LATER, 3, 2, "against"),
        (torch.where(EACH < 6, EACH // 3, -1), LATER, 2, 2, "apart"),
        (torch.where(EACH < 8, HEADS, -1), SIZES, 2, 4, "across"),
    ],
)
def test_relations(mine, theirs, size, other, relation):
    assert relate(mine, theirs, size, other)[0] == relation


def test_within_says_in_which_unit():
    assert relate(HEADS, EACH, 3, 12)[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    part = torch.where(EACH < 8, HEADS, -1)
    assert relate(part, EACH, 2, 12)[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    "blocks",
    [
        (Block(start=0, unit_stride=4, loops=((4, 1),)),),
        (Block(start=0, unit_stride=1, loops=((3, 4),)),),
        (Block(start=0, unit_stride=2, loops=((2, 1),)), Block(start=8, unit_stride=1), Block(start=14, unit_stride=3)),
        (Block(start=1, unit_stride=6, loops=((2, 3), (2, 1))),),
    ],
)
def test_fitted_blocks_give_the_same_owners(blocks):
    wanted = axis(4, 30, *blocks)
    found = fit(wanted, 4)
    assert found is not None
    assert torch.equal(axis(4, 30, *found), wanted)


def test_what_no_blocks_can_say_is_not_fitted():
    assert fit(torch.tensor([0, 0, 1]), 2) is None  # units of different length
    assert fit(torch.tensor([2, 1, 0]), 3) is None  # going backwards
    assert fit(torch.tensor([0, 1, -1, 2]), 3) is None  # uneven steps
    assert fit(torch.tensor([0, 1, 0, 1]), 3) is None  # a unit without any index


def test_units_share_a_stretch_evenly():
    assert axis(3, 14, *even_blocks(3, 2, 12)).tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    turns = even_blocks(3, 2, 9, interleaved=True)
    assert axis(3, 14, *turns).tolist() == [-1, -1, 0, 1, 2, 0, 1, 2, 0, 1, 2, -1, -1, -1]


def test_places_outside_or_in_two_units_are_refused():
    blocks = strided_blocks((Strides(start=0, unit_stride=4, loops=((4, 1),)),))
    assert torch.equal(owners(blocks, 3, 12), HEADS)
    assert owners(blocks, 3, 11) == "expected places below 11, the length of the dimension, got 11"
    close = strided_blocks((Strides(unit_stride=3, loops=((4, 1),)),))
    assert owners(close, 3, 12) == "expected every index in one unit only, but index 3 is in two"
    twice = strided_blocks((Strides(unit_stride=1), Strides(start=2, unit_stride=1)))
    assert owners(twice, 3, 12) == "expected every index in one unit only, but index 2 is in two"
