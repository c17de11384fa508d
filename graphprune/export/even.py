"""A spec whose layers would differ, made even: the same total of units, spread over all layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from graphprune.export.kinds import Kind, kinds_of
from graphprune.export.limits import asked_of, nearest, possible
from graphprune.export.rules import rules_for
from graphprune.graph import DependencyGraph
from graphprune.schema import PruneSpec, Target
from graphprune.validate import ResolvedTarget


@dataclass(frozen=True)
class Even:
    """A spec that makes all layers alike.

    Attributes:
        spec: units compete inside of one layer, and targets are added for groups that had none.
        keep: how many units stay, by the name of a group, where that is not what the targets say.
        notes: what was changed, in words.
        problem: why it cannot be done; empty where it can.
    """

    spec: PruneSpec
    keep: dict[str, int]
    notes: tuple[str, ...] = ()
    problem: str = ""


def evened(spec: PruneSpec, graph: DependencyGraph, resolved: tuple[ResolvedTarget, ...]) -> Even:
    """Makes a spec even.

    What was to go is spread over all groups of a kind, to the nearest unit; if in doubt more stay. What else the export
    asks of sizes holds.
    """
    notes = []
    if spec.scope != "layer":
        notes.append(f"units compete inside of each layer, not by scope '{spec.scope}': {_WHY}")
    targets: dict[str, Target] = {g.name: item.target for item in resolved for g in item.groups}
    keep: dict[str, int] = {}
    added: list[Target] = []
    for kind in kinds_of(graph, targets):
        asked = {g.name: asked_of(g, targets[g.name]) for g in kind.groups if g.name in targets}
        if len(asked) == len(kind.groups) and len(set(asked.values())) == 1:
            continue
        frozen = next((g for g in kind.groups if g.frozen is not None), None)
        if frozen is not None:
            told = f"'{frozen.name}' must not be pruned ({frozen.frozen}), so layers would differ"
            return Even(spec, {}, problem=told)
        missing = [g.name for g in kind.groups if g.name not in asked]
        total = sum(asked.values()) + kind.size * len(missing)
        kept = nearest(total, {n * len(kind.groups) for n in _options(kind, spec, graph, targets)}) or total
        kept //= len(kind.groups)
        keep |= dict.fromkeys((g.name for g in kind.groups), kept)
        if missing:
            added.append(Target(name=f"re:^({'|'.join(map(re.escape, missing))})$", keep=kept))
        notes.append(
            f"{kind.role}: {total} of {kind.size * len(kind.groups)} units asked for in all, "
            f"{kept} of {kind.size} kept in each of {len(kind.groups)} groups: {_WHY}"
        )
    changed = spec.model_copy(update={"scope": "layer", "targets": (*spec.targets, *added)})
    return Even(changed, keep, tuple(notes))


_WHY = "a stock config has one size for all layers, and 'hf' is the only one of export.targets"


def _options(kind: Kind, spec: PruneSpec, graph: DependencyGraph, targets: Mapping[str, Target]) -> set[int]:
    """How many units every group of a kind may keep; all of them is always possible."""
    everything = Target(role=kind.role, ratio=0)
    found = [
        {g.size, *possible(g, targets.get(g.name, everything), rules_for(g, graph, spec.export))} for g in kind.groups
    ]
    return set.intersection(*found)
