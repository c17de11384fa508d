"""Modules numbered alike, of which some did not run."""

from graphprune.graph import Block, Member
from graphprune.trace.unrun import Unrun

TENSORS = [f"layers.{i}.experts.{e}.{part}.weight" for i in (0, 1) for e in (0, 1, 2) for part in ("up", "down")]
TENSORS += ["head.weight", "layers.0.first1.weight", "layers.0.first2.weight"]


def members(*tensors):
    return [Member(tensor=t, dim=0, size=2, length=2, blocks=(Block(start=0, unit_stride=1),)) for t in tensors]


def test_an_axis_that_leaves_a_module_with_an_idle_sibling_may_have_more():
    unrun = Unrun(TENSORS, {t for t in TENSORS if ".experts.1." not in t and ".experts.2." not in t})
    inside = members("layers.0.experts.0.up.weight", "layers.0.experts.0.down.weight")
    assert unrun.reasons(inside) == []
    (reason,) = unrun.reasons([*inside, *members("head.weight")])
    assert reason == "'layers.0.experts.1' did not run in the traced forward pass and may have this axis"
    across = members("layers.0.experts.0.up.weight", "layers.1.experts.0.up.weight")
    assert unrun.reasons(across)[0].startswith("'layers.0.experts.1' and 1 more did not run")
    assert unrun.reasons(members("head.weight", "layers.0.first1.weight")) == []


def test_a_layer_that_did_not_run_counts_too():
    unrun = Unrun(TENSORS, {t for t in TENSORS if not t.startswith("layers.1.")})
    assert unrun.reasons(members("layers.0.experts.0.up.weight", "head.weight")) == [
        "'layers.1' did not run in the traced forward pass and may have this axis"
    ]


def test_where_all_ran_or_none_did_nothing_is_said():
    everywhere = members(*TENSORS)
    assert Unrun(TENSORS, set(TENSORS)).reasons(everywhere) == []
    assert Unrun(TENSORS, set()).reasons(everywhere) == []
