"""What a model has to prune, role by role, for tables and comments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from graphprune.graph import DependencyGraph, Group


@dataclass(frozen=True)
class RoleRow:
    """The groups of one role with one fate: prunable, inexact for a reason, or frozen for a reason."""

    role: str
    groups: tuple[Group, ...]
    frozen: str | None
    inexact: str | None

    @property
    def count(self) -> int:
        """How many groups."""
        return len(self.groups)

    @property
    def smallest(self) -> int:
        """The size of the smallest group."""
        return min(g.size for g in self.groups)

    @property
    def largest(self) -> int:
        """The size of the largest group."""
        return max(g.size for g in self.groups)

    @property
    def sizes(self) -> str:
        """``11008``, or ``8 to 32`` where sizes differ."""
        return str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"

    @property
    def where(self) -> str:
        """The layers, in words."""
        return layers_text(g.layer for g in self.groups)


def inventory(graph: DependencyGraph) -> tuple[RoleRow, ...]:
    """One row per role and fate: prunable ones first, in the order of the graph."""
    fates: dict[tuple[str, str | None, str | None], list[Group]] = {}
    for g in graph.groups:
        inexact = None if g.exact or g.frozen else g.inexact_reason or "no reason recorded"
        fates.setdefault((g.role, g.frozen, inexact), []).append(g)
    rows = [RoleRow(role, tuple(groups), frozen, inexact) for (role, frozen, inexact), groups in fates.items()]
    return tuple(sorted(rows, key=lambda row: row.frozen is not None))


def unit_weights(graph: DependencyGraph, group: Group) -> float:
    """How many numbers in parameters and buffers go with one unit, on average over the units.

    What lies in two slices of the same unit counts once.
    """
    stays: dict[str, float] = {}  # the part of each tensor that is left when one unit goes, or of its one unit
    alone: set[str] = set()
    for m in group.members:
        taken = sum(prod(count for count, _ in block.loops) for block in m.blocks) / m.length
        stays[m.tensor] = stays.get(m.tensor, 1.0) * (1 - taken)
        if m.only is not None:
            alone.add(m.tensor)
    total = 0.0
    for tensor, part in stays.items():
        weights = prod(graph.shapes.get(tensor, (0,))) * (1 - part)
        total += weights / group.size if tensor in alone else weights
    return total


def layers_text(layers: Iterable[int | None]) -> str:
    """``layers 0-3, 5`` for 0, 1, 2, 3, 5; ``layer 4`` for 4; ``outside the layers`` for None."""
    found = set(layers)
    runs: list[list[int]] = []
    for number in sorted(n for n in found if n is not None):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    inside = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
    noun = "layer" if len(runs) == 1 and len(runs[0]) == 1 else "layers"
    parts = (f"{noun} {inside}" if inside else "", "outside the layers" if None in found else "")
    return " and ".join(part for part in parts if part)


def plural(count: int, noun: str) -> str:
    """``1 group``, ``2 groups``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
