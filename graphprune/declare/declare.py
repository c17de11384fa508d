"""``declare``: the graph of a model with the groups that a spec declares by hand, checked against both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from graphprune.declare.bind import bind
from graphprune.declare.carry import agreeing, constants_after, minimum_of, rules_after
from graphprune.declare.join import Board, Joint, join
from graphprune.declare.masks import mask_sites
from graphprune.declare.patterns import TensorNames, common_path, fill, layers_of, per_layer
from graphprune.declare.problems import Problems
from graphprune.declare.sizes import declared_rules
from graphprune.declare.values import Bound, Context
from graphprune.declared import DeclaredGroup
from graphprune.errors import SelectionError, SpecError
from graphprune.graph import DependencyGraph, Group, Member, SizeRule
from graphprune.names import bare
from graphprune.schema import PruneSpec
from graphprune.selection import layer_indices
from graphprune.trace import trace


def declare(
    graph: DependencyGraph, declared: PruneSpec | Iterable[DeclaredGroup], model: nn.Module, *, source: str = "spec"
) -> DependencyGraph:
    """The graph with groups that were declared by hand; neither ``graph`` nor ``model`` is changed.

    A declared group says what goes when a unit goes, where the tracer cannot see it. Everything that can be checked
    without running the model is: that tensors, modules and integers are there and have the sizes that are said, that
    units share a dimension evenly, and that no other group contradicts. A frozen group of the trace whose units lie
    inside the declared ones becomes part of the declared group, if that has all of its members, or says that it
    completes it; the reason why it was frozen is lifted and noted.

    That the model does what is declared is the author's word. :func:`graphprune.masked` and
    :func:`graphprune.reshape` of the same plan agree if it is true.

    Args:
        graph: of ``model``. What it has declared already is not declared again.
        declared: a spec, or its groups.
        model: real, or on the meta device; weights are not looked at.
        source: what to call the spec in errors.

    Raises:
        SpecError: listing every problem with its path in the spec, what was expected and what was got.
    """
    wanted = declared.groups if isinstance(declared, PruneSpec) else tuple(declared)
    new = [(i, g) for i, g in enumerate(wanted) if g not in graph.declared]
    if not new:
        return graph
    context = Context(graph, TensorNames(graph), bare(model), Problems())
    board, rules = Board(graph), list[SizeRule]()
    for index, group in new:
        for bound in _bound(group, f"groups[{index}]", context):
            joint = join(bound, board, context)
            if joint is not None:
                rules += _settle(joint, board, context)
    constants = constants_after(board, context)
    traced = rules_after(board)
    rules = agreeing(traced, rules, board, context)
    if context.problems:
        raise SpecError(context.problems.texts(), source)
    return graph.model_copy(
        update={
            "groups": tuple(board.groups.values()),
            "rules": tuple(dict.fromkeys((*traced, *rules))),
            "constants": constants,
            "notes": tuple(dict.fromkeys((*graph.notes, *board.notes))),
            "declared": (*graph.declared, *(g for _, g in new)),
        }
    )


def trace_with(
    model: nn.Module,
    declared: PruneSpec | Iterable[DeclaredGroup],
    *,
    example_inputs: Mapping[str, Any] | None = None,
    source: str = "spec",
) -> DependencyGraph:
    """The traced graph of a model with the declared groups of a spec.

    Raises:
        TraceError: as :func:`graphprune.trace`.
        SpecError: as :func:`declare`.
    """
    return declare(trace(model, example_inputs=example_inputs), declared, model, source=source)


def _bound(group: DeclaredGroup, path: str, context: Context) -> Iterator[Bound]:
    """The declaration in every layer that it is about."""
    if not per_layer(group):
        if group.layers is not None:
            text = "expected a {layer} in a name, for layers to choose among; got none. Leave 'layers' out"
            context.problems.add(f"{path}.layers", "layers", text)
        found = bind(group, path, None, context)
        if found is not None:
            yield found
        return
    layers = _layers(group, path, context)
    for layer in layers:
        found = bind(group, path, layer, context)
        if found is not None:
            yield found


def _layers(group: DeclaredGroup, path: str, context: Context) -> list[int]:
    there = layers_of(group, context.names)
    if group.layers is None:
        if not there:
            name = next((m.tensor for m in group.members), group.entries or "")
            text = f"expected names of tensors in some layer, but none matches '{name}'{context.names.near(name)}"
            context.problems.add(f"{path}.members", "nothing", text)
        return there
    try:
        return sorted(layer_indices(group.layers, max(context.graph.layers, max(there, default=-1) + 1)))
    except SelectionError as error:
        context.problems.add(f"{path}.layers", "layers", str(error))
        return []


def _settle(joint: Joint, board: Board, context: Context) -> list[SizeRule]:
    """Puts a declared group into its place, and gives the rules that it brings."""
    bound = joint.bound
    absorbed = [board.groups[name] for name in joint.absorbed]
    if bound.declared.completes and not _completes(joint, absorbed, context):
        return []
    name = _name(joint, absorbed, board, context)
    layers = board.layers({t for t, _ in joint.cuts} | {m.tensor for m in bound.whole})
    reasons = dict.fromkeys(g.inexact_reason for g in absorbed if not g.exact)
    inexact = bound.declared.inexact or "; ".join(reason for reason in reasons if reason) or None
    lifted = dict.fromkeys(g.frozen for g in absorbed)
    group = Group(
        name=name,
        role=bound.declared.role,
        layer=next(iter(layers)) if len(layers) == 1 else bound.layer,
        size=bound.size,
        members=_members(joint),
        sites=mask_sites(joint, absorbed, context),
        exact=inexact is None,
        inexact_reason=inexact,
        minimum=max([bound.declared.minimum, *(minimum_of(g, joint.absorbed[g.name], bound.size) for g in absorbed)]),
        norms=tuple(dict.fromkeys(norm for g in absorbed for norm in g.norms)),
        stacks=(bound.stack,) if bound.stack is not None else (),
        declared=True,
    )
    for old in absorbed:
        board.drop(old.name)
        board.joined[old.name] = (name, joint.absorbed[old.name])
    board.put(group)
    board.declared[name] = bound.path
    board.notes += [f"'{name}' is declared by hand, which lifts: {reason}" for reason in lifted if reason]
    return declared_rules(bound, name, context)


def _members(joint: Joint) -> tuple[Member, ...]:
    size = joint.bound.size
    slices = [
        Member(tensor=tensor, dim=dim, size=size, length=len(cut.owner), blocks=cut.blocks, consumes=cut.consumes)
        for (tensor, dim), cut in sorted(joint.cuts.items(), key=lambda item: item[0])
    ]
    return (*slices, *joint.bound.whole)


def _completes(joint: Joint, absorbed: list[Group], context: Context) -> bool:
    """Whether there was something to complete, and the declaration adds to it."""
    bound = joint.bound
    if not absorbed:
        text = (
            f"expected a frozen group that the declaration completes{bound.where}, but its members belong to none. "
            "Name the traced group, or leave 'completes' out"
        )
        context.problems.add(f"{bound.path}.completes", "nothing", text)
        return False
    known = {(m.tensor, m.dim) for g in absorbed for m in g.members if _alike(g, bound.declared.role)}
    if bound.stack is None and set(bound.cuts) <= known:
        reason = f" It is frozen because {absorbed[0].frozen}" if absorbed[0].frozen else ""
        text = (
            f"expected members beyond those that were traced{bound.where}, but '{absorbed[0].name}' has them all. "
            f"What else goes when one of its units goes?{reason}"
        )
        context.problems.add(f"{bound.path}.members", "nothing new", text)
        return False
    return True


def _alike(group: Group, role: str) -> bool:
    """Whether a traced group is what is declared, in part; others are axes whose meaning was not found."""
    return group.role == role or group.frozen is None


def _name(joint: Joint, absorbed: list[Group], board: Board, context: Context) -> str:
    bound = joint.bound
    others = set(board.groups) - {g.name for g in absorbed}
    if bound.declared.name is not None:
        name = fill(bound.declared.name, bound.layer)
        if name in others:
            text = f"expected a name of its own, got '{name}', which another group has"
            context.problems.add(f"{bound.path}.name", "taken", text)
        return name
    same = [g.name for g in absorbed if g.role == bound.declared.role]
    if same:
        return same[0]
    tensors = [*(tensor for tensor, _ in joint.cuts), *(m.tensor for m in bound.whole)]
    owners = [tensor.rpartition(".")[0] for tensor in tensors]
    base = f"{common_path(owners)}/{bound.declared.role}".lstrip("/")
    return next(n for n in (base, *(f"{base}.{i}" for i in range(1, len(others) + 2))) if n not in others)
