"""What was done to a model, remembered on the model itself so that it can be saved and pruned again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from graphprune.errors import PlanError
from graphprune.graph import DependencyGraph
from graphprune.names import bare
from graphprune.plan import PrunePlan

_ATTRIBUTE = "_graphprune_history"

#: The reason why a config does not describe a model that was just cut.
NOT_SETTLED = "no config was looked for"


@dataclass(frozen=True)
class Step:
    """One pruning: a plan and the graph it was made for."""

    graph: DependencyGraph
    plan: PrunePlan


@dataclass(frozen=True)
class Underway:
    """A pruning that is done bit by bit: the plan so far, and the steps before it."""

    step: Step
    before: tuple[Step, ...] = ()


@dataclass(frozen=True)
class StandIn:
    """A class of transformers as which a model can be saved, where a config of its own class does not describe it.

    Attributes:
        architecture: its name.
        base_config: its config of the unpruned model, as plain JSON values.
        config: its config of the model.
    """

    architecture: str
    base_config: dict[str, Any]
    config: Any


@dataclass(frozen=True)
class History:
    """How a model came to be.

    Attributes:
        architecture: the class of the model.
        base_name: where the unpruned model came from, as far as its config tells.
        base_config: the unpruned model's config as plain JSON values.
        steps: every pruning since, oldest first.
        stock: whether the model's present config describes it, so that stock ``from_pretrained`` can load it.
        why_not: where it does not, the reason.
        underway: the pruning that the last step is a part of, where more of it may come.
        stand_in: the class as which ``stock`` can load it, where that is not its own.
    """

    architecture: str
    base_name: str
    base_config: dict[str, Any]
    steps: tuple[Step, ...] = ()
    stock: bool = True
    why_not: str = ""
    underway: Underway | None = None
    stand_in: StandIn | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> History:
        return self  # a value; a copy of the model has the same past

    def then(self, step: Step) -> History:
        """The history with one more step, merged with the last one where they speak of the same units."""
        if self.steps:
            last = self.steps[-1]
            try:
                merged = Step(last.graph, compose(last.plan, step.plan))
            except PlanError:
                pass
            else:
                return replace(self, steps=(*self.steps[:-1], merged), underway=None, stand_in=None)
        return replace(self, steps=(*self.steps, step), underway=None, stand_in=None)


def compose(first: PrunePlan, second: PrunePlan) -> PrunePlan:
    """The one plan that does what ``first`` and then ``second`` do, in units of the model before ``first``.

    Raises:
        PlanError: if ``second`` was made for other groups than ``first`` leaves.
    """
    left = {name: size for name, size in first.sizes_after().items() if size > 1}
    found = {name: size for name, size in second.sizes.items() if size > 1}
    if left != found:
        odd = sorted(name for name in {*left, *found} if left.get(name) != found.get(name))
        raise PlanError(
            f"the second plan does not start where the first ends: sizes of {odd[0]!r} and {len(odd) - 1} more differ"
        )
    removed = dict(first.removed)
    for name, units in second.removed.items():
        kept = first.kept(name)
        removed[name] = tuple(sorted({*removed.get(name, ()), *(kept[u] for u in units)}))
    notes = (*first.notes, *second.notes)
    return first.model_copy(update={"removed": removed, "notes": notes})


def history_of(model: nn.Module) -> History:
    """What was done to ``model`` so far; of an unpruned model the history without steps."""
    base = bare(model)
    known = getattr(base, _ATTRIBUTE, None)
    if isinstance(known, History):
        return known
    config: Any = getattr(base, "config", None)
    plain = json.loads(config.to_json_string(use_diff=False)) if hasattr(config, "to_json_string") else {}
    name = str(getattr(config, "_name_or_path", "") or "")
    return History(architecture=type(base).__name__, base_name=name, base_config=plain)


def remember(model: nn.Module, history: History) -> None:
    """Leaves ``history`` on the model: a plain attribute, seen by no ``state_dict`` or ``save_pretrained``."""
    object.__setattr__(bare(model), _ATTRIBUTE, history)


def config_from(kind: Any, values: dict[str, Any]) -> Any:
    """A config of class ``kind`` from plain JSON values, in which infinities are written as transformers does."""
    tagged = {"__float__"}
    decoded = json.loads(
        json.dumps(values), object_hook=lambda item: float(item["__float__"]) if item.keys() == tagged else item
    )
    return kind.from_dict(decoded)


def underway_of(model: nn.Module, plan: PrunePlan) -> Underway | None:
    """The unfinished pruning of ``model`` that ``plan`` goes on with, if there is one."""
    underway = history_of(model).underway
    return underway if underway is not None and underway.step.plan.fingerprint == plan.fingerprint else None


def graph_of(model: nn.Module, graph: DependencyGraph | None, plan: PrunePlan | None = None) -> DependencyGraph:
    """``graph`` itself; where it is None, the traced graph of ``model`` with what was declared for ``plan``.

    The graph that an unfinished pruning began with is remembered by the model.
    """
    if graph is not None:
        return graph
    underway = None if plan is None else underway_of(model, plan)
    if underway is not None:
        return underway.step.graph
    from graphprune.declare import trace_with

    return trace_with(model, plan.declared if plan is not None else (), source="plan")
