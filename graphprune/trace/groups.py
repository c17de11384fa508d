"""From a finished trace to the dependency graph: atoms become groups, their places become members."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from torch import nn

from graphprune.graph import Axis, DependencyGraph, Group, MaskSite, Member, SizeRule
from graphprune.trace.axes import Atom, Expr, atoms, length, matters
from graphprune.trace.constants import constant_slices
from graphprune.trace.depth import depth_groups, depth_rules
from graphprune.trace.findings import Findings
from graphprune.trace.functions import AVERAGES, LOGITS
from graphprune.trace.integer_rules import Name, size_rules
from graphprune.trace.integers import Source, configs_of
from graphprune.trace.norms import NORMED, Remedy, remedy
from graphprune.trace.places import Polynomial, places, polynomial
from graphprune.trace.readers import called_readers
from graphprune.trace.roles import PRUNABLE, UNSUPPORTED, Evidence, role_of, uncounted
from graphprune.trace.stack import LayerStack
from graphprune.trace.tracer import Tracer, frozen_reasons
from graphprune.trace.unrun import Unrun

EXPERTS = "expert_weights"
"""The mark of an axis along which a router chooses among weights."""

INCOMPLETE = "only the router's rows were traced; the experts behind it were reached through Python integers"
"""Frozen until a declared group says what else goes; integers and constants that follow are looked for all the same."""

COMPUTED = "a router chooses these units by numbers that it computes (of a grid, say), so that no row of it is a unit's"


AUDIBLE = "a norm averages over this axis and a constant that is not in the checkpoint, which no mask can silence there"
"""Masks before a norm are on weights where what enters it is made inside of its module."""


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
    found = Findings(tracer)
    drafts = _drafts(found)
    _assign_roles(drafts, stack, tracer.passages.stream())
    _assign_names(drafts)
    by_atom = {d.atom: d for d in drafts}
    reasons = frozen_reasons(tracer)
    unrun = Unrun(tracer.parameters, tracer.touched)
    groups = tuple(_group(found, d, [*reasons.get(id(d.atom), ()), *unrun.reasons(d.members)]) for d in drafts)
    groups, rules = _settle(tracer, groups, by_atom, _values(model))
    rules = (*rules, *_owner_rules(tracer, model, groups, _naming(groups, by_atom)))
    rules = (*rules, *called_readers(model, rules, _read(tracer)))
    groups += depth_groups(tracer, model)
    rules = (*rules, *depth_rules(tracer, model, groups))
    shapes = {n: tuple(length(e) for e in dims) for n, dims in tracer.parameters.items()}
    return DependencyGraph(
        groups=groups,
        rules=tuple(dict.fromkeys(rules)),
        constants=constant_slices(tracer, _naming(groups, by_atom)),
        shapes=shapes,
        tied=tied,
        untraced=tuple(sorted(set(tracer.parameters) - tracer.touched)),
        notes=tuple(dict.fromkeys(tracer.notes)),
        layers=stack.count,
        readers={n: tuple(sorted(r)) for n, r in tracer.readers.items() if r != {n.rpartition(".")[0]}},
    )


def _settle(
    tracer: Tracer, groups: tuple[Group, ...], by_atom: dict[Atom, Draft], values: dict[tuple[str, str], int]
) -> tuple[tuple[Group, ...], tuple[SizeRule, ...]]:
    """Rules for attributes; groups whose sizes the forward fixes otherwise are frozen until no equation is broken."""
    # An axis may be constant by now (one query, key and value side by side): it tells of attributes all the same.
    uses = [use for use in tracer.uses.values() if matters(use.axis) or not atoms(use.axis)]
    arithmetic = [(reader, monomials) for (reader, _), monomials in tracer.arithmetic.items()]
    while True:
        solution = size_rules(uses, arithmetic, tracer.axes, values, _naming(groups, by_atom))
        if not solution.contradictions:
            return groups, solution.rules
        groups = tuple(
            g.model_copy(update={"frozen": solution.contradictions[g.name]}) if g.name in solution.contradictions else g
            for g in groups
        )


def _naming(groups: Iterable[Group], by_atom: dict[Atom, Draft]) -> Name:
    """The group of an atom, if its units may go (or may once a declared group completes it)."""
    followed = {g.name for g in groups if g.frozen in (None, INCOMPLETE)}

    def name(atom: Atom) -> str | None:
        draft = by_atom.get(atom.root())
        return draft.name if draft is not None and draft.name in followed else None

    return name


def _drafts(found: Findings) -> list[Draft]:
    drafts: dict[Atom, Draft] = {}
    for tensor, dims in found.tracer.parameters.items():
        for d, expr in enumerate(dims):
            consumes = found.consumes(tensor, expr)
            for atom, blocks in places(expr).items():
                member = Member(
                    tensor=tensor, dim=d, size=atom.size, length=length(expr), blocks=tuple(blocks), consumes=consumes
                )
                drafts.setdefault(atom, Draft(atom)).members.append(member)
    return list(drafts.values())


def _assign_roles(drafts: list[Draft], stack: LayerStack, stream: set[int]) -> None:
    beside: dict[str, set[Atom]] = defaultdict(set)
    along: dict[tuple[str, int], set[Atom]] = defaultdict(set)
    read: dict[str, set[Atom]] = defaultdict(set)
    written: dict[str, set[Atom]] = defaultdict(set)
    for draft in drafts:
        for m in draft.members:
            beside[m.tensor].add(draft.atom)
            along[m.tensor, m.dim].add(draft.atom)
            (read if m.consumes else written)[m.tensor].add(draft.atom)
        draft.layers = frozenset(stack.layer(m.tensor) for m in draft.members)
    if not stream:  # no layers: whatever is not local to one of them
        stream = {id(d.atom) for d in drafts if len(d.layers) > 1 or None in d.layers}
    for draft in drafts:
        if {"batched_weights", "chosen"} <= draft.atom.flags:
            draft.atom.flags.add(EXPERTS)
    for draft in drafts:
        neighbours = {a for m in draft.members for a in beside[m.tensor]} - {draft.atom}
        fed = {a for m in draft.members if m.consumes for a in written[m.tensor]} - {draft.atom}
        writers = {m.tensor for m in draft.members if not m.consumes}
        draft.role = role_of(
            Evidence(
                flags=frozenset(draft.atom.flags),
                stream=id(draft.atom) in stream,
                produced=any(not m.consumes for m in draft.members),
                consumed=any(m.consumes for m in draft.members),
                reads_stream=any(id(a) in stream for t in writers for a in read[t]),
                writes_stream=any(id(a) in stream for a in fed),
                feeds=frozenset(frozenset(a.flags) for a in fed),
                beside=_marks(neighbours),
                along=_marks({a for m in draft.members for a in along[m.tensor, m.dim]} - {draft.atom}),
            )
        )


def _marks(axes: Iterable[Atom]) -> frozenset[str]:
    return frozenset().union(*(a.flags for a in axes))


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


def _group(found: Findings, draft: Draft, reasons: list[str]) -> Group:
    remedied = remedy(found, draft.atom, draft.members)
    norm_sites = _norm_sites(found, draft, remedied)
    if found.buffers[draft.atom] and any(site.kind == "weight" for site in norm_sites):
        reasons = [*reasons, AUDIBLE]
    sites = _sites(found, draft) + norm_sites
    layers = draft.layers
    return Group(
        name=draft.name,
        role=draft.role,
        layer=next(iter(layers)) if len(layers) == 1 else None,
        size=draft.atom.size,
        members=tuple(draft.members),
        sites=tuple(dict.fromkeys(sites)),
        norms=remedied.scales,
        exact=remedied.reason is None,
        inexact_reason=remedied.reason,
        frozen=_frozen(found, draft, sites, reasons),
        minimum=max([1, *(count for _, count in found.minimums[draft.atom])]),
        multiple_of=_multiple(found, draft),
    )


def _multiple(found: Findings, draft: Draft) -> int:
    """What kernels want the number of units to be a multiple of.

    Matrices of experts, which are multiplied in groups, want rows of a multiple of 16 bytes.
    """
    wanted = [n for _, n in found.alignments[draft.atom]]
    for m in draft.members:
        dims, width = found.tracer.parameters[m.tensor], 16 // found.tracer.itemsizes.get(m.tensor, 16)
        if len(dims) == 3 and m.dim > 0 and m.length == m.size and any(EXPERTS in a.flags for a in atoms(dims[0])):
            wanted.append(width)
    return math.lcm(*(n for n in wanted if draft.atom.size % n == 0))


def _frozen(found: Findings, draft: Draft, sites: tuple[MaskSite, ...], reasons: list[str]) -> str | None:
    flags = draft.atom.flags
    if reasons:
        return "; ".join(reasons)
    if not found.tracer.touched & {m.tensor for m in draft.members}:
        return "the traced forward pass never used it"
    if draft.role not in PRUNABLE:
        return UNSUPPORTED[draft.role]
    if draft.role == "moe.expert" and not flags & {EXPERTS, "batched_weights"}:
        return COMPUTED if "computed" in flags else INCOMPLETE
    if found.valued[draft.atom]:
        return found.valued[draft.atom][0][1]
    if "assigned" in flags:
        return "a stored table assigns these units to token ids; without a unit its tokens would have none"
    if (reason := uncounted(draft.role, frozenset(flags))) is not None:
        return reason
    if not sites:
        return "no place was found where a unit could be silenced, so removing cannot be checked"
    return None


def _sites(found: Findings, draft: Draft) -> tuple[MaskSite, ...]:
    if draft.role in ("moe.expert", "moe.group"):
        return _call_sites(found, draft, "logits", LOGITS)
    sites: dict[tuple[str, str], MaskSite] = {}
    for c in found.consumptions[draft.atom]:
        if c.module is not None and c.last and len(c.params) == 1:
            sites["input", c.module] = _input_site(draft, c.inner, c.module)
            continue
        for m in draft.members:
            if m.consumes and m.tensor in c.params:
                sites.update({("weight", f"{m.tensor} {m.dim} {s.reader}"): s for s in _weight_sites(found.tracer, m)})
    return tuple(sites.values())


def _norm_sites(found: Findings, draft: Draft, remedied: Remedy) -> tuple[MaskSite, ...]:
    """Under a norm, units must be silent before it, or left out of what it averages.

    What a norm is given is masked where it enters the norm's module; where it is made inside, the slices of all
    weights that write the axis are masked instead.
    """
    if remedied.statistics:
        return _call_sites(found, draft, "norm", AVERAGES)
    if not draft.atom.flags & NORMED:
        return ()
    norms = found.norms[draft.atom]
    if norms and all(norm.entered for norm in norms):
        return tuple(_input_site(draft, norm.axis, norm.module) for norm in norms)
    writers = (m for m in draft.members if not m.consumes or m.tensor in found.tracer.looked_up)
    return tuple(site for m in writers for site in _weight_sites(found.tracer, m))


def _input_site(draft: Draft, axis: Expr, module: str) -> MaskSite:
    blocks = tuple(places(axis)[draft.atom])
    return MaskSite(kind="input", module=module, axis=Axis(size=draft.atom.size, length=length(axis), blocks=blocks))


def _weight_sites(tracer: Tracer, member: Member) -> list[MaskSite]:
    """A tensor is masked while the module runs that reads it, which need not be the one that has it."""
    axis = Axis(size=member.size, length=member.length, blocks=member.blocks)
    owner = member.tensor.rpartition(".")[0]
    return [
        MaskSite(
            kind="weight", module=member.tensor, dim=member.dim, axis=axis, reader="" if reader == owner else reader
        )
        for reader in sorted(tracer.readers.get(member.tensor, {owner}))
    ]


def _call_sites(
    found: Findings, draft: Draft, kind: Literal["logits", "norm"], functions: frozenset[str]
) -> tuple[MaskSite, ...]:
    sites = []
    for call in found.calls[draft.atom]:
        if call.function in functions:
            axis_expr = call.dims[call.dim]
            blocks = tuple(places(axis_expr)[draft.atom])
            site = MaskSite(
                kind=kind,
                module=call.module,
                axis=Axis(size=draft.atom.size, length=length(axis_expr), blocks=blocks),
                dim=call.dim - len(call.dims),
                function=call.function,
                call=call.call,
            )
            sites.append(site)
    return tuple(sites)


def _values(model: nn.Module) -> dict[tuple[str, str], int]:
    """Every integer attribute of modules and configs, those in tuples included, by (owner, attribute)."""
    found: dict[tuple[str, str], int] = {}
    for owner, thing in (*configs_of(model), *model.named_modules()):
        for name, value in vars(thing).items():
            if type(value) is int:
                found[owner, name] = value
            elif isinstance(value, tuple):
                found.update({(owner, f"{name}[{i}]"): v for i, v in enumerate(value) if type(v) is int})
    return found


def _read(tracer: Tracer) -> set[tuple[str, Source]]:
    """Every module with every integer that was read, and used, while it ran."""
    used = [(use.reader, [monomial for monomial, _ in use.terms]) for use in tracer.uses.values()]
    used += [(reader, list(monomials)) for (reader, _), monomials in tracer.arithmetic.items()]
    return {(reader, source) for reader, monomials in used for m in monomials for source, _ in m}


def _owner_rules(tracer: Tracer, model: nn.Module, groups: Iterable[Group], name: Name) -> list[SizeRule]:
    """Counts kept by a module beside a raw parameter of its own (``num_experts`` beside 3-D expert weights).

    Only an attribute whose value no other attribute of the module shares is taken.
    """
    rules = []
    for group in groups:
        if group.frozen is not None or not group.role.startswith("moe."):
            continue
        for m in group.members:
            owner, expr = m.tensor.rsplit(".", 1)[0], tracer.parameters[m.tensor][m.dim]
            attributes = {n: v for n, v in vars(model.get_submodule(owner)).items() if type(v) is int}
            alone: Polynomial = {(group.name,): Fraction(1)}
            for size, poly in ((group.size, alone), (length(expr), polynomial(expr, name))):
                named = [n for n, v in attributes.items() if v == size]
                if len(named) == 1 and () not in poly:
                    terms = tuple((int(coefficient), key) for key, coefficient in sorted(poly.items()))
                    rules.append(SizeRule(owner=owner, attribute=named[0], reader=owner, constant=0, terms=terms))
    return list(dict.fromkeys(rules))
