"""Units of the beginning and units of now."""

import torch

from graphprune.engine.present import Present
from graphprune.plan import PrunePlan

FIRST, SECOND = "model.layers.0.mlp/mlp.channel", "model.layers.1.mlp/mlp.channel"


def test_nothing_is_translated_while_nothing_is_gone(graph):
    present = Present.of(graph)
    plan = PrunePlan.remove(graph, {FIRST: [3]})
    assert present.graph is graph
    assert present.left(plan) is plan
    assert present.groups(graph.groups) == graph.groups
    scores = {FIRST: torch.arange(24.0)}
    assert present.spread(scores, [graph.by_name[FIRST]]) == scores


def test_scores_go_to_the_units_that_are_left(graph):
    present = Present(graph, PrunePlan.remove(graph, {FIRST: [0, 2]}))
    group = graph.by_name[FIRST]
    (now,) = present.groups([group])
    assert now.size == 22
    spread = present.spread({FIRST: torch.arange(1.0, 23.0)}, [group])[FIRST]
    assert spread[:5].tolist() == [0.0, 1.0, 0.0, 2.0, 3.0]
    assert present.left(PrunePlan.remove(graph, {FIRST: [0, 2, 4]})).removed == {FIRST: (2,)}


def test_groups_that_went_with_a_layer_score_zero(graph):
    present = Present(graph, PrunePlan.remove(graph, {"model.layers/layer": [0]}))
    groups = [graph.by_name[FIRST], graph.by_name[SECOND]]
    assert [g.name for g in present.groups(groups)] == [FIRST]
    spread = present.spread({FIRST: torch.ones(24)}, groups)
    assert not spread[FIRST].any()
    assert spread[SECOND].tolist() == [1.0] * 24
