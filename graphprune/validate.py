"""Does a spec fit a model? Everything that can be said before a single weight is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from graphprune.errors import SelectionError, SpecError
from graphprune.graph import DependencyGraph, Group
from graphprune.importance import Signal
from graphprune.inventory import layers_text, plural
from graphprune.schema import PruneSpec, Target
from graphprune.selection import Selection


@dataclass(frozen=True)
class ResolvedTarget:
    """A target and the groups of one graph that it means, in graph order, without the frozen ones (noted)."""

    target: Target
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()


def resolve_targets(spec: PruneSpec, graph: DependencyGraph, source: str = "spec") -> tuple[ResolvedTarget, ...]:
    """The groups that each target of ``spec`` selects, one entry per target, in order.

    Raises:
        SpecError: listing every target that selects nothing or only frozen groups, every group that two targets
            select, and every declared group that the graph was made without.
    """
    problems: list[str] = _missing(spec, graph)
    resolved: list[ResolvedTarget] = []
    for index, target in enumerate(spec.targets):
        where = f"targets[{index}]"
        try:
            chosen = _select(target, graph)
        except SelectionError as error:
            problems.append(f"{where}: {error}")
            continue
        groups = tuple(g for g in chosen if g.frozen is None)
        frozen = tuple(g for g in chosen if g.frozen is not None)
        if not chosen:
            problems.append(f"{where}: {_nothing(target, graph)}")
        elif not groups:
            problems.append(f"{where}: {_only_frozen(frozen)}")
        notes = tuple(f"{where}: left alone, because frozen: {reason}" for reason in _reasons(frozen))
        resolved.append(ResolvedTarget(target, groups, notes if groups else ()))
    if not problems:
        problems = _overlaps(resolved)
    if problems:
        raise SpecError(problems, source)
    return tuple(resolved)


def check(spec: PruneSpec, graph: DependencyGraph, source: str = "spec") -> list[str]:
    """Checks ``spec`` against the graph of a model and returns what is worth knowing, in words.

    Raises:
        SpecError: listing every problem: those of :func:`resolve_targets`, every amount that leaves nothing or
            less than a group's minimum, and a criterion that a quantised base cannot serve.
    """
    notes: list[str] = []
    problems: list[str] = _without_gradients(spec)
    for index, item in enumerate(resolve_targets(spec, graph, source)):
        where = f"targets[{index}].{amount(item.target)}"
        notes.extend(item.notes)
        notes.extend(_inexact(index, item.groups))
        notes.extend(_declared(index, item.groups))
        pools = _pools(item.groups, spec.scope)
        too_much = _too_much(item) if spec.scope == "layer" else _too_much_together(item.target, pools)
        problems.extend(f"{where}: {problem}" for problem in too_much)
        if item.target.ratio != 0 and all(_kept(item.target, pool) == _size(pool) for pool in pools):
            sizes = _sizes(item.groups)
            notes.append(f"{where}: removes nothing from groups of {sizes} units; raise the amount or drop the target")
    if problems:
        raise SpecError(problems, source)
    return notes


def _without_gradients(spec: PruneSpec) -> list[str]:
    asked = spec.criterion.build().signals & {Signal.WEIGHT_GRADIENT, Signal.SQUARED_GRADIENT}
    if spec.quantization is None or not asked:
        return []
    problem = (
        f"criterion: '{spec.criterion.name}' needs gradients of weights, which a base in {spec.quantization.kind} does "
        "not have. Choose lora, gate, wanda or magnitude, or leave quantization out."
    )
    return [problem]


def amount(target: Target) -> str:
    """Which of ``ratio``, ``count`` and ``keep`` the target gives."""
    return next(name for name in ("ratio", "count", "keep") if getattr(target, name) is not None)


def _select(target: Target, graph: DependencyGraph) -> Selection:
    chosen = graph.select(role=target.role, layers=target.layers, name=target.name, frozen=None)
    if target.exclude_layers is not None:
        chosen = chosen - chosen.where(layers=target.exclude_layers)
    for pattern in target.exclude or ():
        chosen = chosen - chosen.where(name=pattern)
    return chosen


def _missing(spec: PruneSpec, graph: DependencyGraph) -> list[str]:
    """What the spec declares by hand and the graph does not have."""
    lacking = [index for index, group in enumerate(spec.groups) if group not in graph.declared]
    return [
        f"groups[{index}]: expected a graph with this declared group; add it with gp.declare(graph, spec, model)"
        for index in lacking
    ]


def _nothing(target: Target, graph: DependencyGraph) -> str:
    """Why a selection is empty: what was asked, and what there is."""
    fields = ("role", "name", "layers", "exclude_layers", "exclude")
    asked = {field: getattr(target, field) for field in fields if getattr(target, field) is not None}
    words = ", ".join(f"{field} {_plain(value)}" for field, value in asked.items())
    near = [n for role in target.role or () for n in get_close_matches(role, {g.role for g in graph}, n=1)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near and set(near) != set(target.role or ()) else ""
    return f"selects no group ({words}).{hint} The model has {_there_is(graph)}."


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _there_is(graph: DependencyGraph) -> str:
    """Roles with the layers they occur in, for messages: ``mlp.channel (layers 0-31); ...``."""
    by_role: dict[str, list[Group]] = {}
    for group in graph:
        by_role.setdefault(group.role + (" frozen" if group.frozen else ""), []).append(group)
    parts = [f"{role} ({layers_text(g.layer for g in groups)})" for role, groups in sorted(by_role.items())]
    return f"{graph.layers} layers and these roles: " + ("; ".join(parts) if parts else "none at all")


def _only_frozen(frozen: tuple[Group, ...]) -> str:
    lines = [f"selects only groups that must not be pruned ({len(frozen)}):"]
    lines += [f"      {reason}" for reason in _reasons(frozen)]
    return "\n".join([*lines, "      Select other groups; `graphprune trace MODEL` lists which can be pruned."])


def _reasons(frozen: Iterable[Group]) -> list[str]:
    """Each distinct reason once, with the group it was met in first and how many more share it."""
    met: dict[str, list[str]] = {}
    for group in frozen:
        met.setdefault(group.frozen or "", []).append(group.name)
    return [
        f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {reason}"
        for reason, names in met.items()
    ]


def _overlaps(resolved: list[ResolvedTarget]) -> list[str]:
    """Every pair of targets that share groups, with the first shared one."""
    shared: dict[tuple[int, int], list[str]] = {}
    owner: dict[str, int] = {}
    for index, item in enumerate(resolved):
        for group in item.groups:
            first = owner.setdefault(group.name, index)
            if first != index:
                shared.setdefault((first, index), []).append(group.name)
    return [
        f"targets[{first}] and targets[{second}] both select {plural(len(names), 'group')}, '{names[0]}' first; "
        "a group takes one amount only. Narrow one of them with layers, name or exclude."
        for (first, second), names in shared.items()
    ]


def _too_much(item: ResolvedTarget) -> list[str]:
    """One line per distinct size at which the amount goes below a group's minimum."""
    target = item.target
    cases: dict[tuple[int, int], list[str]] = {}
    for group in item.groups:
        if target.kept(group.size) < group.minimum:
            cases.setdefault((group.size, group.minimum), []).append(group.name)
    return [
        f"group '{names[0]}'{f' and {len(names) - 1} more' if len(names) > 1 else ''} "
        f"{'has' if len(names) == 1 else 'have'} {size} units; {_told(target)} leaves {target.kept(size)}, "
        f"below the minimum {minimum}. Remove less."
        for (size, minimum), names in cases.items()
    ]


def _too_much_together(target: Target, pools: list[tuple[Group, ...]]) -> list[str]:
    """The same for units that compete across groups: only the totals can be judged before scores exist."""
    problems = []
    for pool in pools:
        kept, minimum = _kept(target, pool), sum(g.minimum for g in pool)
        if kept < minimum:
            what = f"{plural(len(pool), 'group')} with {_size(pool)} units together"
            problems.append(f"{what}; {_told(target)} leaves {kept}, below the minimum {minimum}. Remove less.")
    return problems


def _pools(groups: tuple[Group, ...], scope: str) -> list[tuple[Group, ...]]:
    """The groups whose units compete."""
    if scope == "layer":
        return [(g,) for g in groups]
    if scope == "global":
        return [groups]
    return [tuple(g for g in groups if g.role == role) for role in dict.fromkeys(g.role for g in groups)]


def _size(pool: tuple[Group, ...]) -> int:
    return sum(g.size for g in pool)


def _kept(target: Target, pool: tuple[Group, ...]) -> int:
    """How many units of a pool stay: a ratio is that of the whole pool, the other amounts are summed."""
    if target.ratio is not None and len(pool) > 1:
        return target.model_copy(update={"multiple_of": 1}).kept(_size(pool))
    return sum(target.kept(g.size) for g in pool)


def _told(target: Target) -> str:
    return f"{amount(target)} {getattr(target, amount(target))}"


def _inexact(index: int, groups: tuple[Group, ...]) -> list[str]:
    reasons = Counter(g.inexact_reason or "no reason recorded" for g in groups if not g.exact)
    return [
        f"targets[{index}]: in {plural(count, 'group')} removal is not the same as masking: {reason}"
        for reason, count in reasons.items()
    ]


def _declared(index: int, groups: tuple[Group, ...]) -> list[str]:
    """What rests on the spec's word alone."""
    count = sum(g.declared for g in groups)
    return [f"targets[{index}]: {plural(count, 'group')} declared by hand, not traced"] if count else []


def _sizes(groups: Iterable[Group]) -> str:
    sizes = sorted({g.size for g in groups})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
