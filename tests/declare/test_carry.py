"""What the trace knew of groups that became part of declared ones."""

import torch

from graphprune.declare.carry import minimum_of, rules_after, share
from graphprune.declare.join import Board
from graphprune.graph import DependencyGraph, Group, SizeRule

EACH = torch.arange(12) // 4  # twelve traced units are three declared ones
FIRST = torch.tensor([0, 1, 2, -1, -1])  # five traced units, of which three are declared


def group(name, size, **extra):
    return Group(name=name, role="x", layer=0, size=size, members=(), **extra)


def test_shares():
    assert share(EACH, 3) == (4, 0)
    assert share(FIRST, 3) == (1, 2)


def test_minimums_are_counted_in_declared_units():
    assert minimum_of(group("a", 12, minimum=5), EACH, 3) == 2
    assert minimum_of(group("a", 5, minimum=4), FIRST, 3) == 2  # the two others may serve
    assert minimum_of(group("a", 5, minimum=2), FIRST, 3) == 1


def test_rules_keep_their_values():
    def rule(attribute, constant, *terms):
        return SizeRule(owner="m", attribute=attribute, reader="m", constant=constant, terms=terms)

    rules = (rule("p", 1, (2, ("a", "b"))), rule("q", 0, (1, ("c",))), rule("r", 7, (3, ("b",))))
    graph = DependencyGraph(groups=(group("a", 12), group("b", 5), group("c", 2)), rules=rules, shapes={})
    board = Board(graph)
    for name in ("a", "b"):
        board.drop(name)
        board.put(group(name.upper(), 3))
    board.joined = {"a": ("A", EACH), "b": ("B", FIRST)}
    after = {r.attribute: r for r in rules_after(board)}
    for old in rules:
        assert after[old.attribute].value({"A": 3, "B": 3, "c": 2}) == old.value({"a": 12, "b": 5, "c": 2})
    assert after["p"].value({"A": 2, "B": 1, "c": 2}) == rules[0].value({"a": 8, "b": 3, "c": 2})
    assert after["q"] is rules[1]
