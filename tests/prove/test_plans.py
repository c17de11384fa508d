"""The random plans of a proof."""

from __future__ import annotations

import pytest
import torch

import graphprune as gp
from graphprune.graph import Group
from graphprune.prove.plans import removable, together, trials
from tests.decoders import tiny


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("size", "minimum", "multiple", "share", "count"),
    [
        (40, 1, 1, 0.0, 1),
        (40, 1, 1, 0.25, 10),
        (40, 1, 4, 0.0, 4),  # what stays is a multiple of four
        (40, 1, 4, 0.25, 8),
        (42, 1, 4, 0.25, 10),  # two go first
        (4, 1, 4, 0.25, 0),
        (5, 4, 1, 0.9, 1),  # the minimum stays
        (5, 5, 1, 0.9, 0),
        (1, 1, 1, 0.5, 0),
    ],
)
def test_how_many_units_go(size, minimum, multiple, share, count):
    group = Group(name="a/b", role="b", layer=0, size=size, members=(), minimum=minimum, multiple_of=multiple)
    assert removable(group, share) == count


def test_a_kind_is_tried_from_four_sides():
    graph = gp.trace(tiny("llama"))
    groups = tuple(graph.select(role="mlp.channel"))
    found = trials(graph, groups, 0.25, generator())
    assert [t.name for t in found] == [
        "one unit in one layer",
        "one unit in all layers",
        "25% of the units in one layer",
        "25% of the units in all layers",
    ]
    assert [sorted(len(u) for u in t.plan.removed.values()) for t in found] == [[1], [1] * 3, [10], [10] * 3]


def test_what_repeats_a_trial_is_left_out():
    graph = gp.trace(tiny("llama"))
    assert len(trials(graph, tuple(graph.select(role="attention.group")), 0.25, generator())) == 2


def test_one_of_every_essential_set_stays():
    group = Group(name="layers/layer", role="layer", layer=None, size=6, members=(), essential=((0, 1, 2), (3,)))
    graph = gp.trace(tiny("llama"))
    graph = graph.model_copy(update={"groups": (group,)})
    for seed in range(20):
        plan = together(graph, (group,), 0.9, torch.Generator().manual_seed(seed))[0].plan
        assert 3 not in plan.removed[group.name] and not {0, 1, 2} <= set(plan.removed[group.name])
