"""Random plans that try a kind from several sides: a unit or a share, in one layer or in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graphprune.graph import DependencyGraph, Group
from graphprune.plan import PrunePlan


@dataclass(frozen=True)
class Trial:
    """A plan and what it is, in words."""

    name: str
    plan: PrunePlan


def trials(
    graph: DependencyGraph, groups: Sequence[Group], share: float, generator: torch.Generator
) -> tuple[Trial, ...]:
    """One unit in one layer, one in all, ``share`` of the units in one layer, ``share`` in all: the last one is the
    widest. What repeats another trial, or can remove nothing, is left out.
    """
    layers = list(dict.fromkeys(g.layer for g in groups))
    layer = layers[int(torch.randint(len(layers), (1,), generator=generator))]
    some = [g for g in groups if g.layer == layer]
    scopes = [("one layer", some), ("all layers", groups)] if len(layers) > 1 else [("all layers", groups)]
    found: dict[tuple[tuple[str, int], ...], Trial] = {}
    for amount, wanted in (("one unit", 0.0), (f"{share:.0%} of the units", share)):
        for scope, chosen in scopes:
            counts = tuple((g.name, removable(g, wanted)) for g in chosen)
            if counts not in found:
                found[counts] = Trial(f"{amount} in {scope}", _draw(graph, counts, generator))
    return tuple(trial for trial in found.values() if trial.plan.removed)


def together(
    graph: DependencyGraph, groups: Sequence[Group], share: float, generator: torch.Generator
) -> tuple[Trial, ...]:
    """``share`` of the units of all ``groups`` at once; nothing where none can be removed."""
    plan = _draw(graph, tuple((g.name, removable(g, share)) for g in groups), generator)
    return (Trial("all kinds together", plan),) if plan.removed else ()


def removable(group: Group, share: float) -> int:
    """How many units of ``group`` to remove for a share of them: at least one step, and its minimum stays."""
    odd = group.size % group.multiple_of  # this many have to go before the steps begin
    step = odd or group.multiple_of
    most = group.size - max(1, group.minimum)
    if step > most:
        return 0
    wanted = min(int(group.size * share), most)
    return max(step, wanted - (wanted - step) % group.multiple_of)


def _draw(graph: DependencyGraph, counts: tuple[tuple[str, int], ...], generator: torch.Generator) -> PrunePlan:
    return PrunePlan.remove(graph, {name: _units(graph.by_name[name], count, generator) for name, count in counts})


def _units(group: Group, count: int, generator: torch.Generator) -> list[int]:
    """At most ``count`` random units; of every set of which one must stay, one does."""
    chosen: set[int] = set()
    for unit in torch.randperm(group.size, generator=generator).tolist():
        if len(chosen) < count and not any({*chosen, unit} >= set(kind) for kind in group.essential):
            chosen.add(unit)
    return sorted(chosen)
