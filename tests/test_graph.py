"""The graph's values: strided blocks, members, rules, and the networkx view."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from graphprune.graph import Block, DependencyGraph, Group, Member, SizeRule

FUSED = Member(
    tensor="m.qkv",
    dim=0,
    size=2,
    length=14,
    blocks=(Block(start=0, unit_stride=4, loops=((4, 1),)), Block(start=8, unit_stride=2, loops=((2, 1),))),
)
GROUP = Group(name="m/attention.group", role="attention.group", layer=0, size=2, members=(FUSED,))
GRAPH = DependencyGraph(groups=(GROUP,), shapes={"m.qkv": (14, 5)}, layers=1)


def test_indices_are_sorted_and_cover_every_block():
    assert FUSED.indices(0).tolist() == [0, 1, 2, 3, 8, 9]
    assert FUSED.indices(1).tolist() == [4, 5, 6, 7, 10, 11]
    assert FUSED.indices(1).dtype == torch.int64


def test_every_index_knows_its_unit():
    assert FUSED.unit_of().tolist() == [0] * 4 + [1] * 4 + [0, 0, 1, 1, -1, -1]
    for unit in range(2):
        assert torch.equal((FUSED.unit_of() == unit).nonzero().flatten(), FUSED.indices(unit))


def test_a_unit_out_of_range_is_refused():
    with pytest.raises(IndexError, match=r"unit 2 is outside 0\.\.1"):
        FUSED.indices(2)


def test_saliency_is_summed_over_a_units_slice():
    saliency = torch.rand(14, 5, dtype=torch.float64)
    expected = [saliency[FUSED.indices(u)].sum().item() for u in range(2)]
    assert FUSED.reduce(saliency).tolist() == pytest.approx(expected, rel=1e-12)


def test_saliency_of_three_dimensional_parameters():
    member = Member(tensor="e", dim=1, size=3, length=6, blocks=(Block(start=0, unit_stride=2, loops=((2, 1),)),))
    saliency = torch.rand(4, 6, 5, dtype=torch.float64)
    expected = [saliency[:, member.indices(u)].sum().item() for u in range(3)]
    assert member.reduce(saliency).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "block",
    [
        Block(start=0, unit_stride=1),
        Block(start=0, unit_stride=4, loops=((4, 1),)),
        Block(start=0, unit_stride=4, loops=((2, 2), (2, 1))),
        Block(start=0, unit_stride=1, loops=((4, 3),)),  # the units interleave
        Block(start=0, unit_stride=4, loops=((2, 2),)),  # with gaps
        Block(start=4, unit_stride=4, loops=((4, 1),)),  # something else comes first
        Block(start=0, unit_stride=2, loops=((2, 1),)),  # something else comes last
    ],
)
def test_a_vector_is_summed_to_units_however_they_lie(block):
    length = 3 if block.unit_stride == 1 and not block.loops else 16 if block.start else 12
    member = Member(tensor="e", dim=0, size=3, length=length, blocks=(block,))
    vector = torch.rand(length, dtype=torch.float64)
    expected = [vector[member.indices(u)].sum().item() for u in range(3)]
    assert member.gather(vector).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_size_rule_follows_the_group_sizes():
    rule = SizeRule(owner="a", attribute="n", reader="a", constant=2, terms=((3, ("x", "y")), (1, ("x",))))
    assert rule.value({"x": 4, "y": 5}) == 2 + 3 * 4 * 5 + 4


def test_the_networkx_view_has_groups_tensors_and_slices():
    nx = GRAPH.nx
    assert nx.nodes["m/attention.group"]["role"] == "attention.group"
    assert nx.nodes["m.qkv"]["shape"] == [14, 5]
    ((_, tensor, data),) = nx.edges(data=True)
    assert tensor == "m.qkv" and data["dim"] == 0 and data["blocks"][1]["start"] == 8


def test_the_fingerprint_tells_structures_apart():
    other = GRAPH.model_copy(update={"layers": 2})
    assert len(GRAPH.fingerprint) == 16
    assert other.fingerprint != GRAPH.fingerprint
    assert GRAPH.model_copy(update={"notes": ("a note",)}).fingerprint == GRAPH.fingerprint


def test_values_are_frozen_and_closed():
    with pytest.raises(ValidationError, match="frozen"):
        GROUP.size = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        Block(start=0, unit_stride=1, color="red")


def test_a_tensor_knows_which_groups_cut_it():
    assert GRAPH.cut("m.qkv") == ((GROUP, FUSED),)
    assert GRAPH.cut("other") == ()
