"""From removed units to kept indices."""

import pytest
import torch

from graphprune.errors import PlanError, ReshapeError
from graphprune.graph import Block, DependencyGraph, Group, Member
from graphprune.plan import PrunePlan
from graphprune.reshape.cut import cut_shape, cut_tensor, kept_indices, plan_cuts

HEADS = Member(
    tensor="qkv",
    dim=0,
    size=2,
    length=12,
    blocks=tuple(Block(start=4 * i, unit_stride=2, loops=((2, 1),)) for i in range(3)),
)
WIDTH = Member(tensor="qkv", dim=0, size=2, length=12, blocks=(Block(start=0, unit_stride=1, loops=((6, 2),)),))
INPUT = Member(tensor="qkv", dim=1, size=5, length=5, blocks=(Block(start=0, unit_stride=1),))


def graph(**more):
    groups = tuple(
        Group(name=n, role="r", layer=0, size=m.size, members=(m,))
        for n, m in (("heads", HEADS), ("width", WIDTH), ("input", INPUT))
    )
    return DependencyGraph(groups=groups, shapes={"qkv": (12, 5)}, **more)


def test_kept_indices_of_a_fused_tensor():
    # three parts of two heads of two: head 0 is 0 1, 4 5, 8 9
    assert kept_indices(HEADS, (0,)).tolist() == [2, 3, 6, 7, 10, 11]
    assert kept_indices(HEADS, ()).tolist() == list(range(12))


def test_a_dimension_cut_by_two_groups_keeps_what_both_keep():
    g = graph()
    cuts = plan_cuts(g, PrunePlan.remove(g, {"heads": [0], "width": [1], "input": [1, 4]}))
    assert {t: {d: k.tolist() for d, k in dims.items()} for t, dims in cuts.items()} == {
        "qkv": {0: [2, 6, 10], 1: [0, 2, 3]}
    }
    weight = torch.arange(60).reshape(12, 5)
    small = cut_tensor(weight, cuts["qkv"])
    assert torch.equal(small, weight[[2, 6, 10]][:, [0, 2, 3]])
    assert small.is_contiguous()
    assert cut_shape((12, 5), cuts["qkv"]) == (3, 3)


def test_an_alias_is_cut_under_its_canonical_name():
    g = graph(tied={"qkv": "canonical"})
    assert list(plan_cuts(g, PrunePlan.remove(g, {"input": [0]}))) == ["canonical"]


def test_nothing_may_be_left_of_a_dimension():
    """Each group keeps its minimum, and together they keep nothing."""
    groups = tuple(Group(name=n, role="r", layer=0, size=5, members=(INPUT,)) for n in "ab")
    g = DependencyGraph(groups=groups, shapes={"qkv": (12, 5)})
    with pytest.raises(ReshapeError, match=r"leaves nothing of qkv \(dimension 1\)"):
        plan_cuts(g, PrunePlan.remove(g, {"a": [0, 1, 2], "b": [3, 4]}))


def test_another_graph_is_refused():
    g = graph()
    with pytest.raises(PlanError, match="fingerprint"):
        plan_cuts(graph(notes=("x",), untraced=("y",)), PrunePlan.remove(g, {"input": [0]}))
