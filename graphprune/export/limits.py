"""The sizes that groups have to end with, or be multiples of, as ranking takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from graphprune.export.rules import Rule, rules_for
from graphprune.graph import DependencyGraph, Group
from graphprune.inventory import plural
from graphprune.schema import PruneSpec, Target
from graphprune.validate import ResolvedTarget


@dataclass(frozen=True)
class Limits:
    """What an export asks of single groups, by name; groups that are not named are free.

    Attributes:
        keep: how many units stay of a group, exactly. For groups whose units compete among themselves alone.
        multiples: what the number of units that stay is a multiple of. For groups whose units compete with others'.
        notes: what was changed and why, in words.
    """

    keep: Mapping[str, int] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.keep or self.multiples)


def floor_of(group: Group) -> int:
    """The least number of units that may stay."""
    return max(1, group.minimum, len(group.essential))


def step_of(group: Group, target: Target) -> int:
    """What the number of units that stay is a multiple of, whatever the export."""
    return math.lcm(group.multiple_of, target.multiple_of)


def asked_of(group: Group, target: Target) -> int:
    """How many units of ``group`` stay by ``target`` alone, where its units compete among themselves."""
    step = step_of(group, target)
    kept = max(target.kept(group.size), floor_of(group))
    return min(group.size, math.ceil(kept / step) * step)


def nearest(asked: int, sizes: Iterable[int]) -> int | None:
    """The size next to ``asked``, of two the larger; None where there are none."""
    return min(sizes, key=lambda size: (abs(size - asked), -size), default=None)


def possible(group: Group, target: Target, rules: Iterable[Rule]) -> list[int]:
    """The numbers of units that may stay when some go."""
    step, rules = step_of(group, target), tuple(rules)
    return [n for n in range(floor_of(group), group.size) if n % step == 0 and all(rule.allows(n) for rule in rules)]


def structural(spec: PruneSpec, graph: DependencyGraph, resolved: Iterable[ResolvedTarget]) -> tuple[Limits, list[str]]:
    """What ``spec.export`` asks of any model, and what of it cannot be had, each under its path in the spec."""
    keep: dict[str, int] = {}
    multiples: dict[str, int] = {}
    problems: list[str] = []
    told: dict[str, int] = {}
    for index, item in enumerate(resolved):
        for group in item.groups:
            rules = rules_for(group, graph, spec.export)
            if not rules:
                continue
            if spec.scope != "layer":
                multiples[group.name] = math.lcm(*(rule.multiple for rule in rules))
                continue
            asked = asked_of(group, item.target)
            if asked == group.size or all(rule.allows(asked) for rule in rules):
                continue
            found = nearest(asked, possible(group, item.target, rules))
            why = " and ".join(dict.fromkeys(rule.why for rule in rules if not rule.allows(asked)))
            if found is None:
                problem = f"targets[{index}]: no smaller size of a group of {group.size} {group.role} units fits {why}"
                problems.append(problem + ". Ask for less there, or leave these groups out.")
                continue
            keep[group.name] = found
            note = changed(group, asked, found, why)
            told[note] = told.get(note, 0) + 1
    notes = tuple(note if count == 1 else f"{note} (in {plural(count, 'group')})" for note, count in told.items())
    return Limits(keep, multiples, notes), list(dict.fromkeys(problems))


def changed(group: Group, asked: int, kept: int, why: str) -> str:
    """A note: how many units were asked for, how many are kept, and why."""
    return f"{group.role}: {asked} of {group.size} units asked for, {kept} kept, because of {why}"
