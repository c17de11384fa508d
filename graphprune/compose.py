"""Plans that were made one after the other, as one plan for the model that the first was made for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from graphprune.declare import trace_with
from graphprune.errors import PlanError
from graphprune.graph import DependencyGraph
from graphprune.names import bare
from graphprune.plan import PrunePlan
from graphprune.reshape.apply import cut_model
from graphprune.reshape.cut import Cuts, plan_cuts
from graphprune.reshape.stacks import renaming


def compose(model: nn.Module, plans: Sequence[PrunePlan]) -> PrunePlan:
    """The one plan that does what ``plans`` do one after the other.

    Every plan is checked against the graph that the model has once the plans before it are carried out, on an empty
    copy; and the result is checked to keep exactly the same entries of every tensor. Cut by it, the model has the
    same tensors, bit for bit, with one exception: scales and epsilons of norms over a pruned axis are multiplied
    once instead of several times, and agree to rounding.

    Args:
        model: the model that the first plan was made for, pruned or not, with weights or without (meta device). It is
            left as it is.
        plans: oldest first, each made for what the one before it leaves.

    Returns:
        a plan in units of ``model``; its notes are those of all plans.

    Raises:
        PlanError: if there is no plan; if one was made for another model than the plans before it leave; or if one
            prunes what ``model`` has no group for, so that no single plan does the same.
    """
    if not plans:
        raise PlanError("expected one plan at least, got none")
    twin = _empty(bare(model))
    graph = trace_with(twin, plans[0].declared, source="plan 1")
    start, whole = graph, None
    for number, plan in enumerate(plans, start=1):
        if number > 1:
            graph = trace_with(twin, plan.declared, source=f"plan {number}")
        _check(plan, graph, start, number, len(plans))
        whole = plan if whole is None else composed(start, whole, graph, plan)
        if number < len(plans):
            cut_model(twin, graph, plan)
    assert whole is not None
    return whole


def composed(start: DependencyGraph, first: PrunePlan, then: DependencyGraph, second: PrunePlan) -> PrunePlan:
    """The one plan for ``start`` that does what ``first`` and then ``second`` do.

    Args:
        start: the graph of the model before both.
        first: a plan for it.
        then: the graph of the model that ``first`` leaves.
        second: a plan for that.

    Raises:
        PlanError: if a plan was made for another graph, or if ``start`` has no groups for what ``second`` prunes.
    """
    first.check(start)
    second.check(then)
    after = renaming(start, first)
    before = {now: group.name for group in start.groups if (now := after(group.name)) is not None}
    removed = dict(first.removed)
    for name, units in second.removed.items():
        was = before.get(name)
        kept = () if was is None else first.kept(was)
        if was is None or len(kept) != second.sizes[name]:
            got = "no such group" if was is None else f"'{was}', of which {len(kept)} are left"
            raise PlanError(
                f"the plans cannot be one: the later plan prunes '{name}' of {second.sizes[name]} units, and the model "
                f"before all pruning has {got}. Carry them out one after the other."
            )
        removed[was] = tuple(sorted({*removed.get(was, ()), *(kept[unit] for unit in units)}))
    targets = dict.fromkeys([*first.targets, *(before[name] for name in second.targets if name in before)])
    update = {"removed": removed, "notes": (*first.notes, *second.notes), "targets": tuple(targets)}
    whole = first.model_copy(update=update)
    try:
        whole.check(start)
    except PlanError as error:
        raise PlanError(f"the plans cannot be one: {error}\nCarry them out one after the other.") from None
    _check_same(start, whole, plan_cuts(start, first), plan_cuts(then, second), after)
    return whole


def _check(plan: PrunePlan, graph: DependencyGraph, start: DependencyGraph, number: int, of: int) -> None:
    try:
        plan.check(graph)
    except PlanError as error:
        what = "the model" if number == 1 else f"what plan {number - 1} leaves of the model"
        hint = ""
        if number > 1 and plan.fingerprint == start.fingerprint:
            hint = " It was made for the model before all pruning: it may be composed already."
        raise PlanError(f"plan {number} of {of} is not one for {what}: {error}{hint}") from None


def _check_same(
    start: DependencyGraph, whole: PrunePlan, first: Cuts, second: Cuts, after: Callable[[str], str | None]
) -> None:
    """Units are found again by name and order; this proves that it is the same entries of all tensors that stay."""
    cuts = plan_cuts(start, whole)
    for name, shape in start.shapes.items():
        now = after(name)
        if now is None or name in start.tied:
            continue
        for dim, size in enumerate(shape):
            one = first.get(name, {}).get(dim, torch.arange(size))
            two = second.get(now, {}).get(dim, torch.arange(len(one)))
            both = cuts.get(name, {}).get(dim, torch.arange(size))
            if not torch.equal(one[two], both):
                raise PlanError(
                    f"the plans cannot be one: of dimension {dim} of '{name}' {len(two)} entries stay one after the "
                    f"other, and {len(both)}, or others, at once. Carry them out one after the other."
                )


def _empty(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters have no values; buffers, which a trace may read, keep theirs."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        shell = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(shell, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)
