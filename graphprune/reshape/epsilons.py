"""The epsilons of pruned norms in a stock config: one field gives them, or they go back to what they were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from graphprune.names import plain, resolve_module
from graphprune.reshape.candidates import Changes, Path, Shapes
from graphprune.reshape.cut import norm_epsilons
from graphprune.reshape.history import Step
from graphprune.reshape.stacks import renaming

Place = tuple[str, str]
"""A module's path and the attribute that keeps its epsilon."""


class Builder(Protocol):
    """Builds models of one class from changed configs."""

    base: dict[str, Any]

    def shapes(self, changes: Changes) -> Shapes | None:
        """The shapes of all tensors, or None where the config is refused."""

    def model(self, changes: Changes) -> nn.Module:
        """The model, without weights."""


@dataclass(frozen=True)
class Epsilons:
    """What a stock config can do for the epsilons of pruned norms.

    Attributes:
        changes: the field that gives them their new values, if one does and does nothing else.
        built: what they are in a model built from the config.
        kept: whether that is what pruning made of them.
    """

    changes: Changes = field(default_factory=dict)
    built: dict[Place, float] = field(default_factory=dict)
    kept: bool = True


def find_epsilons(model: nn.Module, builder: Builder, changes: Changes, step: Step) -> Epsilons:
    """Looks for the field of a config that gives the pruned norms of ``model`` the epsilons that they have now."""
    wanted = _wanted(model, step)
    if not wanted:
        return Epsilons()
    before = _numbers(builder.model(changes))
    for path, value in _floats(builder.base):
        for old, new in set(wanted.values()):
            both = {**changes, path: new}
            if math.isclose(value, old, rel_tol=1e-9) and builder.shapes(both) == builder.shapes(changes):
                after = _numbers(builder.model(both))
                moved = {key for key, number in after.items() if before.get(key) != number}
                if moved == set(wanted) and all(math.isclose(after[k], n) for k, (_, n) in wanted.items()):
                    return Epsilons({path: new}, {key: after[key] for key in wanted})
    return Epsilons(built={key: before[key] for key in wanted if key in before}, kept=False)


def _wanted(model: nn.Module, step: Step) -> dict[Place, tuple[float, float]]:
    """The epsilons of the pruned norms, before and now, by where they are now."""
    renamed = renaming(step.graph, step.plan)
    found = {}
    for (owner, attribute), factor in norm_epsilons(step.graph, step.plan).items():
        place = renamed(owner)
        if place is not None:
            now = float(getattr(plain(resolve_module(model, place)), attribute))
            found[place, attribute] = (now / factor, now)
    return found


def _floats(config: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, float]]:
    for name, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _floats(value, (*path, name))
        elif isinstance(value, float):
            yield (*path, name), value


def _numbers(model: nn.Module) -> dict[Place, float]:
    """Every float attribute of every module."""
    return {(p, n): v for p, m in model.named_modules() for n, v in vars(m).items() if isinstance(v, float)}
