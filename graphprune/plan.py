"""A prune plan: which units of which groups go. A value that can be saved, loaded, compared and composed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from graphprune.declared import DeclaredGroup
from graphprune.errors import PlanError
from graphprune.files import write_whole
from graphprune.graph import DependencyGraph, Group
from graphprune.inventory import plural


class PrunePlan(BaseModel):
    """The units to remove, for one dependency graph.

    Attributes:
        removed: for every pruned group the sorted tuple of unit indices that go.
        sizes: the size of every group of the graph before pruning.
        fingerprint: of the graph the plan was made for.
        notes: adjustments that were made to what was asked, in words.
        declared: groups of the graph that were declared by hand, so that it can be made again from the model.
        targets: the groups that could lose units, whether they did or not; empty for a plan made by hand, where these
            are the ones that do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    fingerprint: str
    sizes: dict[str, int]
    removed: dict[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()
    declared: tuple[DeclaredGroup, ...] = ()
    targets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> PrunePlan:
        for name, units in self.removed.items():
            if name not in self.sizes:
                raise ValueError(f"removed names the group '{name}', which 'sizes' does not list")
            if list(units) != sorted(set(units)):
                raise ValueError(f"group '{name}': units must be sorted and distinct, got {units}")
            if units and not 0 <= units[0] <= units[-1] < self.sizes[name]:
                raise ValueError(f"group '{name}' has units 0..{self.sizes[name] - 1}, got {units}")
        unknown = [name for name in self.targets if name not in self.sizes]
        if unknown:
            raise ValueError(f"targets names the group '{unknown[0]}', which 'sizes' does not list")
        return self

    @classmethod
    def remove(cls, graph: DependencyGraph, units: Mapping[str, Iterable[int]]) -> PrunePlan:
        """A plan by hand: the given units of the given groups.

        Raises:
            PlanError: listing every unknown or frozen group, unit out of range, and group left below its minimum.
        """
        problems: list[str] = []
        removed: dict[str, tuple[int, ...]] = {}
        for name, chosen in units.items():
            group = graph.by_name.get(name)
            wanted = tuple(sorted({int(u) for u in chosen}))
            if group is None:
                problems.append(f"unknown group '{name}'; graph.groups lists {len(graph.groups)} names")
                continue
            problems.extend(_problems(group, wanted))
            if wanted:
                removed[name] = wanted
        if problems:
            raise PlanError("the plan cannot be made:\n" + "\n".join(f"  - {p}" for p in problems))
        return cls(fingerprint=graph.fingerprint, sizes=graph.sizes(), removed=removed, declared=graph.declared)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> PrunePlan:
        """Reads a plan written by :meth:`save`.

        Raises:
            PlanError: if the file is missing or is no plan.
        """
        path = Path(file)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise PlanError(f"no plan file at {path}; plans are written by PrunePlan.save") from None
        except ValidationError as error:
            problems = "; ".join(": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors())
            raise PlanError(f"{path} is not a prune plan: {problems}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{path} is not a prune plan: {error}") from None

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_whole(Path(file), json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    def check(self, graph: DependencyGraph) -> None:
        """Checks that the plan was made for ``graph``, and removes nothing that must stay.

        Raises:
            PlanError: for another graph, and for a file that was edited by hand: listing every group that is frozen,
                has another size, or is left below its minimum.
        """
        if self.fingerprint != graph.fingerprint:
            if self.declared != graph.declared:
                raise PlanError(
                    f"the plan was made for a graph with {plural(len(self.declared), 'declaration')} by hand, this one "
                    f"has {len(graph.declared)}. Add them with gp.declare(graph, plan.declared, model)."
                )
            raise PlanError(
                f"the plan was made for a model with graph fingerprint {self.fingerprint}, "
                f"this model has {graph.fingerprint}. Trace the model and make the plan again."
            )
        if self.sizes != graph.sizes():
            raise PlanError("the plan's sizes are not those of the graph whose fingerprint it has. Make it again.")
        problems = [p for name, units in self.removed.items() for p in _problems(graph.by_name[name], units)]
        if problems:
            raise PlanError("the plan removes what must stay:\n" + "\n".join(f"  - {p}" for p in problems))

    def kept(self, group: str) -> tuple[int, ...]:
        """The unit indices of ``group`` that stay, sorted."""
        gone = set(self.removed.get(group, ()))
        return tuple(u for u in range(self.sizes[group]) if u not in gone)

    def sizes_after(self) -> dict[str, int]:
        """Group sizes by name, after pruning."""
        return {name: size - len(self.removed.get(name, ())) for name, size in self.sizes.items()}

    def ratio(self, group: str) -> float:
        """The removed fraction of ``group``."""
        return len(self.removed.get(group, ())) / self.sizes[group]

    def __str__(self) -> str:
        units = sum(len(u) for u in self.removed.values())
        return f"PrunePlan({units} units of {len(self.removed)} groups)"

    def summary(self) -> dict[str, dict[str, Any]]:
        """What goes per role, as the group names tell it, for reports.

        ``groups``, ``removed``, ``of`` and ``ratio`` are of the groups that :attr:`targets` names; ``all_groups``,
        ``all_of`` and ``all_ratio`` are of all groups of the role in the model, layers left alone and frozen groups
        included.
        """
        out: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys([*self.targets, *self.removed]):
            row = out.setdefault(_role(name), dict.fromkeys(("groups", "removed", "of"), 0))
            row["groups"] += 1
            row["removed"] += len(self.removed.get(name, ()))
            row["of"] += self.sizes[name]
        for role, row in out.items():
            sizes = [size for name, size in self.sizes.items() if _role(name) == role]
            row["ratio"] = row["removed"] / row["of"]
            row |= {"all_groups": len(sizes), "all_of": sum(sizes), "all_ratio": row["removed"] / sum(sizes)}
        return out


def _role(name: str) -> str:
    return re.sub(r"\.\d+$", "", name.rsplit("/", 1)[-1])  # a second group beside the first is numbered


def _must_stay(units: tuple[int, ...]) -> str:
    if len(units) > 1:
        return f"one of the units {list(units)}, which are of a kind, must stay"
    return f"unit {units[0]} must stay: it is the only one of its kind, or others need it (see the graph's notes)"


def _problems(group: Group, units: tuple[int, ...]) -> list[str]:
    problems = []
    if group.frozen is not None and units:
        problems.append(f"group '{group.name}' must not be pruned: {group.frozen}")
    if units and not 0 <= units[0] <= units[-1] < group.size:
        problems.append(f"group '{group.name}' has units 0..{group.size - 1}, got {units}")
    elif lost := [units_of for units_of in group.essential if set(units_of) <= set(units)]:
        problems.append(f"group '{group.name}': {_must_stay(lost[0])}")
    elif group.size - len(units) < group.minimum:
        problems.append(
            f"group '{group.name}' has {group.size} units; removing {len(units)} leaves "
            f"{group.size - len(units)}, below its minimum {group.minimum}"
        )
    return problems
