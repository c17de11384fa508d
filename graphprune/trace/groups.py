"""From a finished trace to the dependency graph: atoms become groups, their places become members."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from graphprune.graph import Axis, ConstantSlice, DependencyGraph, Group, MaskSite, Member, NormScale, SizeRule
from graphprune.trace.axes import Atom, length
from graphprune.trace.depth import depth_groups
from graphprune.trace.findings import Findings
from graphprune.trace.integer_rules import size_rules
from graphprune.trace.integers import TracedInt, configs_of
from graphprune.trace.places import places
from graphprune.trace.record import Norm
from graphprune.trace.roles import PRUNABLE, UNSUPPORTED, Evidence, inexact_reason, role_of
from graphprune.trace.stack import LayerStack
from graphprune.trace.tracer import NORMS, Tracer, frozen_reasons

NORMED = frozenset({"mean_square", "normalised", "averaged"})
"""Marks of an axis over which something is averaged, so that a unit counts even where nobody reads it."""


@dataclass
class Draft:
    """One atom on its way to becoming a group."""

    atom: Atom
    members: list[Member] = field(default_factory=list)
    role: str = "other"
    layers: frozenset[int | None] = frozenset()
    name: str = ""


def build_graph(tracer: Tracer, model: nn.Module, tied: dict[str, str]) -> DependencyGraph:
    """The dependency graph of a traced model."""
    stack = tracer.passages.stack
    seen = Findings(tracer)
    drafts = _drafts(seen)
    _assign_roles(drafts, stack, tracer.passages.stream())
    _assign_names(drafts)
    by_atom = {d.atom: d for d in drafts}
    reasons = frozen_reasons(tracer)
    groups = tuple(_group(seen, d, reasons.get(id(d.atom), [])) for d in drafts)
    groups += depth_groups(tracer, model)
    prunable = {g.name for g in groups if g.frozen is None}

    def name(atom: Atom) -> str | None:
        draft = by_atom.get(atom.root())
        return draft.name if draft is not None and draft.name in prunable else None

    rules = (*size_rules(tracer.uses, _values(model), name), *_owner_rules(model, groups))
    shapes = {n: tuple(length(e) for e in dims) for n, dims in tracer.parameters.items()}
    return DependencyGraph(
        groups=groups,
        rules=tuple(dict.fromkeys(rules)),
        constants=_constants(tracer, by_atom, prunable),
        shapes=shapes,
        tied=tied,
        untraced=tuple(sorted(set(tracer.parameters) - tracer.touched)),
        notes=tuple(dict.fromkeys(tracer.notes)),
        layers=stack.count,
    )


def _drafts(seen: Findings) -> list[Draft]:
    drafts: dict[Atom, Draft] = {}
    for tensor, dims in seen.tracer.parameters.items():
        for d, expr in enumerate(dims):
            for atom, blocks in places(expr).items():
                draft = drafts.setdefault(atom, Draft(atom))
                member = Member(
                    tensor=tensor,
                    dim=d,
                    size=atom.size,
                    length=length(expr),
                    blocks=tuple(blocks),
                    consumes=seen.consumes(tensor, expr),
                )
                draft.members.append(member)
    return list(drafts.values())


def _assign_roles(drafts: list[Draft], stack: LayerStack, stream: set[int]) -> None:
    beside: dict[str, set[Atom]] = defaultdict(set)
    for draft in drafts:
        for m in draft.members:
            beside[m.tensor].add(draft.atom)
        draft.layers = frozenset(stack.layer(m.tensor) for m in draft.members)
    if not stream:  # no layers: whatever is not local to one of them
        stream = {id(d.atom) for d in drafts if len(d.layers) > 1 or None in d.layers}
    for draft in drafts:
        neighbours = {a for m in draft.members for a in beside[m.tensor]} - {draft.atom}
        written = {a for m in draft.members if m.consumes for a in beside[m.tensor]} - {draft.atom}
        draft.role = role_of(
            Evidence(
                flags=frozenset(draft.atom.flags),
                stream=id(draft.atom) in stream,
                produced=any(not m.consumes for m in draft.members),
                consumed=any(m.consumes for m in draft.members),
                writes_stream=any(id(a) in stream for a in written),
                feeds=frozenset().union(*(a.flags for a in written)),
                beside=frozenset().union(*(a.flags for a in neighbours)),
            )
        )


def _assign_names(drafts: list[Draft]) -> None:
    taken: dict[str, int] = {}
    for draft in drafts:
        owners = [m.tensor.rsplit(".", 1)[0] for m in draft.members]
        base = f"{_common_path(owners)}/{draft.role}".lstrip("/")
        taken[base] = taken.get(base, 0) + 1
        draft.name = base if taken[base] == 1 else f"{base}.{taken[base] - 1}"


def _common_path(paths: list[str]) -> str:
    """The deepest module that holds all ``paths``; for a single module, its parent."""
    levels = zip(*(p.split(".") for p in paths), strict=False)
    parts = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, levels)]
    return ".".join(parts[:-1] if len(set(paths)) == 1 and len(parts) > 1 else parts)


def _group(seen: Findings, draft: Draft, reasons: list[str]) -> Group:
    flags = frozenset(draft.atom.flags)
    norms = _norms(seen, draft)
    sites = _sites(seen, draft) + _producers(seen, draft)
    reason = inexact_reason(draft.role, flags, _remedies(seen, draft, norms))
    layers = draft.layers
    return Group(
        name=draft.name,
        role=draft.role,
        layer=next(iter(layers)) if len(layers) == 1 else None,
        size=draft.atom.size,
        members=tuple(draft.members),
        sites=sites,
        norms=norms,
        exact=reason is None,
        inexact_reason=reason,
        frozen=_frozen(seen, draft, sites, reasons),
        minimum=max([1, *(n for _, n in seen.minimums[draft.atom])]),
    )


def _remedies(seen: Findings, draft: Draft, norms: tuple[NormScale, ...]) -> frozenset[str]:
    """What can be done about the norms over an axis (see :func:`graphprune.trace.roles.inexact_reason`)."""
    found = {"scale"} if norms else set()
    if all(n.epsilon for n in norms):
        found.add("epsilon")
    masked = sum(c.function in NORMS for c in seen.calls[draft.atom])
    if masked == len(seen.normalised[draft.atom]):
        found.add("statistics")
    return frozenset(found)


def _norms(seen: Findings, draft: Draft) -> tuple[NormScale, ...]:
    """The scales of the norms over this axis that a factor corrects; empty unless every norm has one."""
    if draft.role not in PRUNABLE or "averaged" in draft.atom.flags:
        return ()
    scales = [_scale_of(seen, draft, norm) for norm in seen.norms[draft.atom]]
    found = [scale for scale in scales if scale is not None]
    return tuple(dict.fromkeys(found)) if len(found) == len(scales) else ()


def _scale_of(seen: Findings, draft: Draft, norm: Norm) -> NormScale | None:
    """The one vector along the axis by which a norm multiplies, with the norm's epsilon; None without a vector."""
    own = {m.tensor for m in draft.members if m.tensor.rpartition(".")[0] == norm.module}
    if len(own) != 1 or len(seen.tracer.parameters[min(own)]) != 1:
        return None
    offset = seen.tracer.shifts.get(min(own), 0.0)
    if offset is None:
        return None
    epsilons = seen.tracer.epsilons.get(norm.module, set())
    owner, attribute = next(iter(epsilons)) if len(epsilons) == 1 else ("", "")
    return NormScale(tensor=min(own), offset=offset, owner=owner, epsilon=attribute)


def _producers(seen: Findings, draft: Draft) -> tuple[MaskSite, ...]:
    """Under a norm, units must be silent before it: the slices that write them are masked too."""
    if not draft.atom.flags & NORMED:
        return ()
    writers = [m for m in draft.members if not m.consumes or m.tensor in seen.tracer.looked_up]
    return tuple(
        MaskSite(kind="weight", module=m.tensor, dim=m.dim, axis=Axis(size=m.size, length=m.length, blocks=m.blocks))
        for m in writers
    )


def _frozen(seen: Findings, draft: Draft, sites: tuple[MaskSite, ...], reasons: list[str]) -> str | None:
    flags = draft.atom.flags
    if reasons:
        return "; ".join(reasons)
    if not seen.tracer.touched & {m.tensor for m in draft.members}:
        return "the traced forward pass never used it"
    if draft.role not in PRUNABLE:
        return UNSUPPORTED[draft.role]
    if draft.role == "moe.expert" and "expert_weights" not in flags:
        return "only the router's rows were traced; the experts behind it were reached through Python integers"
    for _, origin in seen.valued[draft.atom]:
        return f"a constant with different values per unit is computed inside {origin or 'the model'}"
    if not sites:
        return "no place was found where a unit could be silenced, so removing cannot be checked"
    return None


def _sites(seen: Findings, draft: Draft) -> tuple[MaskSite, ...]:
    if draft.role in ("moe.expert", "moe.group"):
        return _call_sites(seen, draft, "logits")
    sites: dict[tuple[str, str], MaskSite] = {}
    for c in seen.consumptions[draft.atom]:
        blocks = places(c.inner)[draft.atom]
        axis = Axis(size=draft.atom.size, length=length(c.inner), blocks=tuple(blocks))
        if c.module is not None and c.last and len(c.params) == 1:
            sites[("input", c.module)] = MaskSite(kind="input", module=c.module, axis=axis)
            continue
        for m in draft.members:
            if m.consumes and m.tensor in c.params:
                own = Axis(size=m.size, length=m.length, blocks=m.blocks)
                sites[("weight", m.tensor)] = MaskSite(kind="weight", module=m.tensor, axis=own, dim=m.dim)
    return (*sites.values(), *_call_sites(seen, draft, "norm"))


def _call_sites(seen: Findings, draft: Draft, kind: Literal["logits", "norm"]) -> tuple[MaskSite, ...]:
    sites = []
    for call in (c for c in seen.calls[draft.atom] if (c.function in NORMS) == (kind == "norm")):
        blocks = places(call.dims[call.dim])[draft.atom]
        axis = Axis(size=draft.atom.size, length=length(call.dims[call.dim]), blocks=tuple(blocks))
        dim = call.dim - len(call.dims)
        site = MaskSite(kind=kind, module=call.module, axis=axis, dim=dim, function=call.function, call=call.call)
        sites.append(site)
    return tuple(sites)


def _constants(tracer: Tracer, by_atom: dict[Atom, Draft], prunable: set[str]) -> tuple[ConstantSlice, ...]:
    found = []
    for fork in tracer.records.forks.values():
        if fork.argument is None:
            continue
        for d, expr in enumerate(fork.info.dims):
            for atom, blocks in places(expr).items():
                draft = by_atom.get(atom)
                if draft is not None and draft.name in prunable:
                    axis = Axis(size=atom.size, length=length(expr), blocks=tuple(blocks))
                    slice_ = ConstantSlice(
                        group=draft.name,
                        module=fork.module,
                        argument=fork.argument,
                        dim=d - len(fork.info.dims),
                        axis=axis,
                    )
                    found.append(slice_)
    return tuple(found)


def _values(model: nn.Module) -> dict[tuple[str, str], int]:
    """Every integer attribute of modules and configs by (owner, attribute)."""
    owners = [*configs_of(model), *model.named_modules()]
    return {
        (owner, name): int(value)
        for owner, thing in owners
        for name, value in vars(thing).items()
        if type(value) in (int, TracedInt)
    }


def _owner_rules(model: nn.Module, groups: Iterable[Group]) -> list[SizeRule]:
    """Counts kept by a module beside a raw parameter of its own (``num_experts`` beside 3-D expert weights).

    Only an attribute whose value no other attribute of the module shares is taken.
    """
    rules = []
    for group in groups:
        if group.frozen is not None or not group.role.startswith("moe."):
            continue
        for owner in dict.fromkeys(m.tensor.rsplit(".", 1)[0] for m in group.members):
            attributes = {n: v for n, v in vars(model.get_submodule(owner)).items() if type(v) is int}
            named = [n for n, v in attributes.items() if v == group.size]
            if len(named) == 1:
                terms = ((1, (group.name,)),)
                rules.append(SizeRule(owner=owner, attribute=named[0], reader=owner, constant=0, terms=terms))
    return rules
