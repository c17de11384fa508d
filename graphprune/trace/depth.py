"""The group of whole layers: every entry of the main stack is a unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import nn

from graphprune.graph import Axis, Block, Group, MaskSite, Member, SizeRule, Stack
from graphprune.trace.axes import Concat, matters, resolve
from graphprune.trace.lookups import listed, misunderstood
from graphprune.trace.stack import LayerStack, describe_stacks, kinds, own_counts
from graphprune.trace.tracer import Tracer


def depth_groups(tracer: Tracer, model: nn.Module) -> tuple[Group, ...]:
    """The group of role ``layer``, frozen where layers depend on each other; none without a stack of two or more."""
    stack = tracer.passages.stack
    if stack.path is None or stack.count < 2:
        return ()
    obstacle = tracer.passages.obstacle()
    described = describe_stacks(model, stack, tracer.lookups)
    other = list(misunderstood(tracer.lookups))
    if other and obstacle is None:
        obstacle = (
            f"'{'.'.join(other[0])}' may look layers up by their numbers, which change when a layer goes, but was not "
            "seen to be asked by each layer for its own"
        )
    some = next(listed(model, stack.path, stack.count), None)
    if some is not None and obstacle is None:
        obstacle = f"'{some}' lists some layers by their numbers, which change when a layer goes"
    apart = [path for path in stack.beside if path not in stack.lists]
    if apart and obstacle is None:
        obstacle = (
            f"'{apart[0]}' has an entry for every entry of '{stack.path}'; they would have to go together, but do not "
            "run in turns"
        )
    if obstacle is None:
        obstacle = _laid_out(tracer, described)
    needed = tracer.passages.needed() if obstacle is None else {}
    tracer.notes.extend(f"layer {index} must stay: {reason}" for index, reason in needed.items())
    passage = next((p for calls in tracer.passages.seen.values() for p in calls if p), None)
    units = Axis(size=stack.count, length=stack.count, blocks=(Block(start=0, unit_stride=1),))
    sites: tuple[MaskSite, ...] = ()
    if passage is not None and obstacle is None:
        places = ((passage.argument, passage.output), *tracer.passages.beside())
        sites = tuple(_skip(stack, units, argument, output) for argument, output in places)
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
        stacks=described,
    )
    return (group,)


def depth_rules(tracer: Tracer, model: nn.Module, groups: Iterable[Group]) -> Iterator[SizeRule]:
    """The integers, beside those of the config, that count the layers which may go."""
    for group in groups:
        if group.stacks and group.frozen is None:
            for owner, attribute in own_counts(model, tracer.passages.stack):
                yield SizeRule(owner=owner, attribute=attribute, reader=owner, constant=0, terms=((1, (group.name,)),))


def _skip(stack: LayerStack, units: Axis, argument: str, output: str) -> MaskSite:
    """A layer hands on what its first module is given as what its last one makes."""
    first, last = stack.lists[0], stack.lists[-1]
    return MaskSite(
        kind="skip",
        module=last,
        axis=units,
        argument=argument,
        output=output,
        reader="" if first == last else first,
    )


def _laid_out(tracer: Tracer, stacks: tuple[Stack, ...]) -> str | None:
    """Why layers cannot go one by one where a tensor outside of them has a part for each."""
    for use in tracer.uses.values():
        names = {attribute for monomial, _ in use.terms for (_, attribute), _ in monomial}
        picked = any(isinstance(factor, Concat) for factor in resolve(use.axis))  # one by one
        if names & {attribute for stack in stacks for _, attribute in stack.counts} and (picked or matters(use.axis)):
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
