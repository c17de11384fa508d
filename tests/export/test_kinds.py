"""Groups of one kind, and plans that only tell sizes."""

from graphprune.export.kinds import example, kinds_of
from graphprune.graph import DependencyGraph, Group
from graphprune.trace import trace
from tests.decoders import tiny


def test_a_kind_has_all_groups_of_a_role_whether_they_were_named_or_not():
    graph = trace(tiny("mixtral"))
    names = [graph.select(role="moe.channel").names[1], graph.select(role="attention.group").names[0]]
    heads, channels = sorted(kinds_of(graph, names), key=lambda kind: kind.role)
    assert (heads.role, heads.size, len(heads.groups)) == ("attention.group", 4, 3)
    assert (channels.role, channels.size, len(channels.groups)) == ("moe.channel", 40, 3)
    assert names[0] in channels and names[0] not in heads


def test_an_example_leaves_one_of_each_kind_of_units():
    group = Group(name="layer", role="layer", layer=None, size=4, members=(), essential=((0, 1), (2, 3)))
    graph = DependencyGraph(groups=(group,), shapes={})
    assert example(graph, {"layer": 2}).removed == {"layer": (0, 2)}
    assert example(graph, {"layer": 1}).removed == {"layer": (0, 2)}  # no more can go
