"""Selections can be narrowed, combined, counted, and refuse what makes no sense."""

from __future__ import annotations

import pytest

from graphprune.errors import SelectionError
from graphprune.graph import DependencyGraph, Group
from graphprune.selection import layer_indices


def group(layer, role, frozen=None):
    return Group(name=f"m.{layer}/{role}", role=role, layer=layer, size=4, members=(), frozen=frozen)


GRAPH = DependencyGraph(
    groups=(
        *(group(i, "attention.group") for i in range(5)),
        *(group(i, "mlp.channel") for i in range(5)),
        group(None, "hidden", frozen="too central"),
    ),
    shapes={},
    layers=5,
)


def layers(selection):
    return [g.layer for g in selection]


def test_conditions_narrow():
    assert len(GRAPH.select()) == 10
    assert layers(GRAPH.select(role="mlp.channel", layers="3:-1")) == [3]
    assert layers(GRAPH.select(role=["mlp.*", "attention.*"], layers=[0, -1])) == [0, 4, 0, 4]
    assert GRAPH.select(name="m.1/*").names == ("m.1/attention.group", "m.1/mlp.channel")
    assert GRAPH.select(name=r"re:\.[34]/mlp").names == ("m.3/mlp.channel", "m.4/mlp.channel")


def test_frozen_groups_are_left_out_unless_asked_for():
    assert "hidden" not in {g.role for g in GRAPH.select()}
    assert [g.role for g in GRAPH.select(frozen=True)] == ["hidden"]
    assert len(GRAPH.select(frozen=None)) == 11


def test_selections_combine_like_sets_in_graph_order():
    heads, channels = GRAPH.select(role="attention.group"), GRAPH.select(role="mlp.channel")
    assert len(heads | channels) == 10 and len(heads & channels) == 0
    assert layers((heads | channels) - GRAPH.select(layers="1:")) == [0, 0]
    assert "m.2/mlp.channel" in channels and channels.units == 20


def test_printing_counts_and_lists():
    text = str(GRAPH.select(role="mlp.channel", layers=2))
    assert text.splitlines() == ["1 groups, 4 units", "  m.2/mlp.channel (4 units, 0 tensor slices)"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("3:-1", {3}), ("0, 2:4", {0, 2, 3}), ("::2", {0, 2, 4}), (-1, {4}), ([0, "3:"], {0, 3, 4}), ("-2:", {3, 4})],
)
def test_layer_choices(choice, expected):
    assert layer_indices(choice, 5) == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (7, "layer 7 does not exist: the model has 5 layers"),
        ("three", "expected an index or a slice such as '3:-1', got 'three'"),
        ("1::0", "step of a slice must not be 0"),
        (True, "got True"),
    ],
)
def test_layer_choices_that_make_no_sense(choice, message):
    with pytest.raises(SelectionError, match=message):
        layer_indices(choice, 5)


def test_a_broken_regular_expression_is_named():
    with pytest.raises(SelectionError, match="is not a regular expression"):
        GRAPH.select(name="re:(")
