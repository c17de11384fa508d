"""Groups by role and fate, and layers in words."""

from graphprune.graph import DependencyGraph, Group
from graphprune.inventory import inventory, layers_text, plural


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
