"""Cutting a model bit by bit towards one plan, in units of the model as it was before the first bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from graphprune.errors import PlanError
from graphprune.graph import DependencyGraph
from graphprune.plan import PrunePlan
from graphprune.reshape.apply import Replacement, cut_model
from graphprune.reshape.history import NOT_SETTLED, Step, Underway, history_of, remember, underway_of
from graphprune.reshape.shrink import left_of


def outstanding(
    model: nn.Module, graph: DependencyGraph, plan: PrunePlan, present: DependencyGraph | None = None
) -> tuple[DependencyGraph, PrunePlan]:
    """What is left of ``plan`` to be done on ``model``, with the graph that the model has now.

    Where that graph is known already, it is ``present``.

    Raises:
        PlanError: if the plan belongs to another graph, or keeps units that are gone.
    """
    plan.check(graph)
    underway = underway_of(model, plan)
    if underway is None:
        return graph, plan
    done = underway.step.plan
    for name, units in done.removed.items():
        if back := sorted(set(units) - set(plan.removed.get(name, ()))):
            raise PlanError(
                f"the model has lost unit {back[0]} of group '{name}' already, which the plan keeps. "
                "Use the plan that the training ended with."
            )
    return left_of(graph, done, plan, present)


def cut_further(
    model: nn.Module,
    graph: DependencyGraph,
    plan: PrunePlan,
    *,
    follow: Callable[[Replacement], None] | None = None,
    more: bool = False,
    present: DependencyGraph | None = None,
    anew: Callable[[nn.Module], None] | None = None,
) -> None:
    """:func:`cut_model` of what is left of ``plan``; the model remembers a single pruning by the whole of it.

    Args:
        model: the model, cut by parts of the plan before or not.
        graph: the graph of the model before the first part.
        plan: all units to remove, those included that are gone.
        follow: as in :func:`cut_model`.
        more: whether further parts may follow. Plans in units of ``graph`` are then understood by
            :func:`graphprune.reshape` and :func:`graphprune.masked` until the last one.
        present: the graph that the model has now, where it is known already.
        anew: as in :func:`cut_model`.

    Raises:
        PlanError: if the plan belongs to another graph, or keeps units that are gone.
        ReshapeError: if the model is not the one that was traced; it is untouched then.
    """
    present, left = outstanding(model, graph, plan, present)
    underway, start = underway_of(model, plan), history_of(model)
    if left.removed or (underway is None and not more):
        cut_model(model, present, left, follow, anew)
    if underway is None and not more:
        return
    before = start.steps if underway is None else underway.before
    step = Step(graph, plan)
    history = replace(start, steps=before, underway=None).then(step)
    stays = Underway(step, before) if more else None
    remember(model, replace(history, stock=False, why_not=NOT_SETTLED, underway=stays))
