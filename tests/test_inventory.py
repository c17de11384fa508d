"""Groups by role and fate, and layers in words."""

import pytest

import graphprune as gp
from graphprune.graph import DependencyGraph, Group
from graphprune.inventory import inventory, layers_text, plural, unit_weights
from tests.decoders import tiny


def group(role, layer, size, **extra):
    return Group(name=f"block.{layer}/{role}", role=role, layer=layer, size=size, members=(), **extra)


def test_rows_gather_groups_of_one_role_and_fate_prunable_first():
    groups = (
        group("moe.expert", 0, 8, frozen="why", exact=False, inexact_reason="does not matter"),
        group("mlp.channel", 0, 40),
        group("mlp.channel", 1, 48),
        group("mlp.channel", 2, 40, exact=False, inexact_reason="a norm"),
        group("moe.expert", 1, 8, frozen="another"),
    )
    rows = inventory(DependencyGraph(groups=groups, shapes={}, layers=3))
    assert [(r.role, r.count, r.sizes, r.where, r.frozen, r.inexact) for r in rows] == [
        ("mlp.channel", 2, "40 to 48", "layers 0-1", None, None),
        ("mlp.channel", 1, "40", "layer 2", None, "a norm"),
        ("moe.expert", 1, "8", "layer 0", "why", None),
        ("moe.expert", 1, "8", "layer 1", "another", None),
    ]


def test_layers_read_as_ranges():
    assert layers_text([3, 0, 1, 2, 5, 7, 8]) == "layers 0-3, 5, 7-8"
    assert layers_text([4]) == "layer 4"
    assert layers_text([None]) == "outside the layers"
    assert layers_text([None, 1]) == "layer 1 and outside the layers"


def test_counts_agree_with_their_noun():
    assert [plural(n, "group") for n in (0, 1, 2)] == ["0 groups", "1 group", "2 groups"]


def test_weights_of_a_unit_are_what_disappears():
    model = tiny("qwen3_moe")
    graph = gp.trace(model)
    before = sum(t.numel() for t in model.state_dict().values())
    for role in ("attention.group", "moe.channel", "moe.expert", "hidden"):
        chosen = graph.select(role=role).groups[0]
        units = range(chosen.multiple_of)
        small = gp.reshape(tiny("qwen3_moe"), gp.PrunePlan.remove(graph, {chosen.name: units}), graph)
        gone = before - sum(t.numel() for t in small.state_dict().values())
        assert unit_weights(graph, chosen) * len(units) == pytest.approx(gone), role


def test_weights_of_whole_layers_are_their_average():
    model = tiny("llama")
    (layer,) = gp.trace(model).select(role="layer").groups
    weights = [sum(p.numel() for p in entry.parameters()) for entry in model.model.layers]
    assert unit_weights(gp.trace(model), layer) == pytest.approx(sum(weights) / len(weights))
