"""Units as a run counts them, and as they are counted in the model that has become smaller meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from graphprune.graph import DependencyGraph, Group
from graphprune.plan import PrunePlan
from graphprune.reshape.shrink import left_of, shrunk
from graphprune.reshape.stacks import renaming


@dataclass(frozen=True)
class Present:
    """A model under training, from which the units of a plan are gone.

    Attributes:
        start: the graph that the run speaks of.
        gone: the units that were cut out since, in terms of ``start``.
    """

    start: DependencyGraph
    gone: PrunePlan

    @classmethod
    def of(cls, graph: DependencyGraph) -> Present:
        """A model of which nothing is gone."""
        return cls(graph, PrunePlan.remove(graph, {}))

    @cached_property
    def graph(self) -> DependencyGraph:
        """The graph of the model as it is now."""
        return shrunk(self.start, self.gone) if self.gone.removed else self.start

    def groups(self, groups: Iterable[Group]) -> tuple[Group, ...]:
        """What is left of groups of ``start``, as groups of :attr:`graph`; without those that went with a layer."""
        found = (self._now(g.name) for g in groups)
        return tuple(self.graph.by_name[name] for name in found if name is not None)

    def left(self, plan: PrunePlan) -> PrunePlan:
        """What of a plan for ``start`` is still to be done, as a plan for :attr:`graph`."""
        return left_of(self.start, self.gone, plan, self.graph)[1] if self.gone.removed else plan

    def spread(self, scores: Mapping[str, torch.Tensor], groups: Iterable[Group]) -> dict[str, torch.Tensor]:
        """Scores of the units that are left as scores of all units of ``groups``: zero for those that are gone.

        Shapes: by name in :attr:`graph` (units left,), to by name in ``start`` (size,).
        """
        if not self.gone.removed:
            return dict(scores)
        spread = {}
        for group in groups:
            name = self._now(group.name)
            spread[group.name] = torch.zeros(group.size)
            if name is not None:
                spread[group.name][list(self.gone.kept(group.name))] = scores[name]
        return spread

    def _now(self, name: str) -> str | None:
        now = self._renamed(name)
        return now if now in self.graph.by_name else None

    @cached_property
    def _renamed(self) -> Callable[[str], str | None]:
        return renaming(self.start, self.gone)
