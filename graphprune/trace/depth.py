"""The group of whole layers: every entry of the main stack is a unit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from graphprune.graph import Axis, Block, Group, MaskSite, Member, Stack
from graphprune.trace.axes import Concat, matters, resolve
from graphprune.trace.stack import beside, describe_stack, kinds, numbered_lookup
from graphprune.trace.tracer import Tracer


def depth_groups(tracer: Tracer, model: nn.Module) -> tuple[Group, ...]:
    """The group of role ``layer``, frozen where layers depend on each other; none without a stack of two or more."""
    stack = tracer.passages.stack
    if stack.path is None or stack.count < 2:
        return ()
    obstacle = tracer.passages.obstacle()
    described = describe_stack(model, stack)
    lookup = numbered_lookup(model, stack.count)
    if lookup is not None and obstacle is None:
        obstacle = f"'{lookup}' looks layers up by their numbers, which change when a layer goes"
    other = beside(model, stack)
    if other is not None and obstacle is None:
        obstacle = f"'{other}' has an entry for every entry of '{stack.path}'; they would have to go together"
    if obstacle is None:
        obstacle = _laid_out(tracer, described)
    needed = tracer.passages.needed() if obstacle is None else {}
    tracer.notes.extend(f"layer {index} must stay: {reason}" for index, reason in needed.items())
    passage = next((p for calls in tracer.passages.seen.values() for p in calls if p), None)
    units = Axis(size=stack.count, length=stack.count, blocks=(Block(start=0, unit_stride=1),))
    sites: tuple[MaskSite, ...] = ()
    if passage is not None and obstacle is None:
        skip = MaskSite(kind="skip", module=stack.path, axis=units, argument=passage.argument, output=passage.output)
        sites = (skip,)
    group = Group(
        name=f"{stack.path}/layer",
        role="layer",
        layer=None,
        size=stack.count,
        members=tuple(_members(tracer, model)),
        sites=sites,
        minimum=max(1, len(needed)),
        essential=(*kinds(model, stack.count), *((index,) for index in needed)),
        frozen=obstacle,
        stacks=(described,),
    )
    return (group,)


def _laid_out(tracer: Tracer, stack: Stack) -> str | None:
    """Why layers cannot go one by one where a tensor outside of them has a part for each."""
    for use in tracer.uses.values():
        names = {attribute for monomial, _ in use.terms for (_, attribute), _ in monomial}
        picked = any(isinstance(factor, Concat) for factor in resolve(use.axis))  # one by one
        if names & {attribute for _, attribute in stack.counts} and (picked or matters(use.axis)):
            reason = tracer.portions.why_not(use.axis, use.reader or "the model", tracer.parameters)
            if reason is not None:
                return reason
    return None


def _members(tracer: Tracer, model: nn.Module) -> Iterator[Member]:
    """Every tensor that one layer has to itself, whole, and the portions that layers have of others."""
    stack = tracer.passages.stack
    shared = _shared(model, tracer)
    for name, dims in tracer.parameters.items():
        layer = stack.layer(name)
        if layer is not None and name not in shared:
            length = math.prod(f.size for f in dims[0]) if dims else 1
            whole = Block(start=0, unit_stride=length, loops=((length, 1),) if length > 1 else ())
            yield Member(tensor=name, dim=0, size=stack.count, length=length, blocks=(whole,), only=layer)
    yield from tracer.portions.members(tracer.parameters)


def _shared(model: nn.Module, tracer: Tracer) -> set[str]:
    """Names of parameters that several layers hold."""
    stack = tracer.passages.stack
    holders: dict[int, set[int | None]] = {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(stack.layer(name))
        names.setdefault(id(parameter), name)
    return {names[key] for key, layers in holders.items() if len(layers) > 1}
