"""Groups that a config can only speak of together: those of one kind, one in each layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphprune.graph import DependencyGraph, Group
from graphprune.plan import PrunePlan
from graphprune.reshape.candidates import kind_key


@dataclass(frozen=True)
class Kind:
    """All groups of one role and size that run through tensors of the same names, but for numbers."""

    groups: tuple[Group, ...]

    @property
    def role(self) -> str:
        """The role of its groups."""
        return self.groups[0].role

    @property
    def size(self) -> int:
        """The number of units in each."""
        return self.groups[0].size

    def __contains__(self, name: object) -> bool:
        return any(group.name == name for group in self.groups)


def kinds_of(graph: DependencyGraph, names: Iterable[str]) -> tuple[Kind, ...]:
    """The kinds to which groups of these names belong, with all of their groups."""
    wanted = set(names)
    found: dict[tuple[str, int], list[Group]] = {}
    for group in graph.groups:
        found.setdefault(kind_key(group), []).append(group)
    return tuple(Kind(tuple(groups)) for groups in found.values() if any(g.name in wanted for g in groups))


def example(graph: DependencyGraph, sizes: dict[str, int]) -> PrunePlan:
    """A plan that leaves the given number of units of some groups: which, does not matter."""
    removed = {}
    for name, kept in sizes.items():
        group = graph.by_name[name]
        gone: set[int] = set()
        for unit in range(group.size):
            if len(gone) < group.size - kept and not any({*gone, unit} >= set(kind) for kind in group.essential):
                gone.add(unit)
        removed[name] = sorted(gone)
    return PrunePlan.remove(graph, removed)
