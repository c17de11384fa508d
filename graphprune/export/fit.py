"""Fitting a spec to what its result has to be loadable with, before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from graphprune.errors import SpecError
from graphprune.export.choose import Wish, accepted, choose
from graphprune.export.even import evened
from graphprune.export.kinds import kinds_of
from graphprune.export.limits import Limits, asked_of, changed, possible, structural
from graphprune.export.rules import rules_for
from graphprune.export.stock import Stock
from graphprune.graph import DependencyGraph
from graphprune.inventory import plural
from graphprune.names import bare
from graphprune.schema import ExportTarget, PruneSpec, Target
from graphprune.validate import ResolvedTarget, resolve_targets

#: How far a kept size may be from what was asked for, as a share of a group's units: where another way to load the
#: result is acceptable, and where none is.
_MODERATE, _MOST = 1 / 8, 1 / 4
#: So many configs of the right shapes are traced.
_MOST_PROOFS = 3


@dataclass(frozen=True)
class Fit:
    """A spec that fits its export.

    Attributes:
        spec: what is to be done; the spec itself, but where layers had to be made alike.
        limits: the sizes that the export asks for.
        tier: how the result will load.
        why_not: in which ways that are preferred it will not load, and why; empty where it does.
        notes: everything that was changed, in words.
    """

    spec: PruneSpec
    limits: Limits
    tier: ExportTarget
    why_not: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"tier {self.tier}, {told(self.tier)}{f', {self.why_not}' if self.why_not else ''}"


@dataclass(frozen=True)
class _Refused:
    """Why a tier cannot be had, and what would help."""

    reason: str
    uneven: bool = False


def fit(spec: PruneSpec, graph: DependencyGraph, model: nn.Module, source: str = "spec") -> Fit:
    """Finds the first acceptable way to load the result, and the sizes that it asks for.

    Sizes are rounded where that is a moderate change. What cannot be even by its nature goes to the next acceptable
    target; only where ``hf`` is the only one is it made even.

    Args:
        spec: checked against ``graph`` before.
        graph: of ``model``, with the spec's declared groups.
        model: bare or wrapped, with or without weights; it is not changed.
        source: what the spec was read from, for messages.

    Raises:
        SpecError: if no acceptable target can be had, with the reason for each.
    """
    resolved = resolve_targets(spec, graph, source)
    limits, problems = structural(spec, graph, resolved)
    if problems:
        raise SpecError(problems, source)
    targets = spec.export.acceptable
    refused: dict[ExportTarget, str] = {}
    for tier in targets:
        found = _hf(spec, graph, model, resolved, limits) if tier == "hf" else _plain(tier, spec, model, limits)
        if isinstance(found, Fit):
            return replace(found, why_not=_instead(refused), notes=(*found.limits.notes, *found.notes))
        refused[tier] = found.reason
    raise SpecError([_nowhere(spec, refused)], source)


def _plain(tier: ExportTarget, spec: PruneSpec, model: nn.Module, limits: Limits) -> Fit | _Refused:
    """A tier that takes all sizes."""
    base = bare(model)
    if tier == "hf-remote-code" and not isinstance(base, PreTrainedModel):
        return _Refused(f"{type(base).__name__} is no transformers model")
    return Fit(spec, limits, tier)


def _hf(
    spec: PruneSpec, graph: DependencyGraph, model: nn.Module, resolved: tuple[ResolvedTarget, ...], limits: Limits
) -> Fit | _Refused:
    only = spec.export.acceptable == ("hf",)
    if spec.scope != "layer" and not only:
        return _Refused(f"with scope '{spec.scope}' layers may end with different sizes, and a config has one for all")
    stock = Stock(model, graph)
    sizes = _sizes(resolved, limits.keep)
    reason = stock.impossible(sizes) if spec.scope == "layer" else "layers differ"
    if reason.startswith("layers differ") and only:
        even = evened(spec, graph, resolved)
        if even.problem:
            return _Refused(even.problem)
        spec, resolved = even.spec, resolve_targets(even.spec, graph)
        limits, problems = structural(spec, graph, resolved)
        if problems:
            return _Refused("; ".join(problems))
        limits = Limits({**limits.keep, **even.keep}, {}, (*even.notes, *limits.notes))
        reason = stock.impossible(_sizes(resolved, limits.keep))
    if reason:
        return _Refused(reason)
    return _rounded(spec, graph, stock, resolved, limits, _MOST if only else _MODERATE)


def _rounded(
    spec: PruneSpec,
    graph: DependencyGraph,
    stock: Stock,
    resolved: tuple[ResolvedTarget, ...],
    limits: Limits,
    most: float,
) -> Fit | _Refused:
    """The sizes nearest to what is asked for that a stock config describes."""
    targets = {g.name: item.target for item in resolved for g in item.groups}
    asked = _sizes(resolved, limits.keep)
    if not asked or (stock.accepts(asked) and not stock.objection(asked)):
        return Fit(spec, limits, "hf", notes=_doubts(stock, asked))
    if any(len({asked.get(g.name, g.size) for g in kind.groups}) > 1 for kind in kinds_of(graph, asked)):
        return _Refused(stock.objection(asked))  # a config with a size for each layer, which has to fit as it is
    wishes = _wishes(spec, graph, targets, asked)
    objections = []
    for count, kept in enumerate(choose(stock, wishes, most)):
        if count == _MOST_PROOFS:
            break
        sizes = {name: n for wish, n in zip(wishes, kept, strict=True) for name, n in wish.sizes(n).items()}
        objection = stock.objection(sizes)
        if not objection:
            notes = [
                _rounding(wish, n, targets, stock.name) for wish, n in zip(wishes, kept, strict=True) if n != wish.asked
            ]
            fitted = Limits({**limits.keep, **sizes}, {}, (*limits.notes, *notes))
            return Fit(spec, fitted, "hf", notes=_doubts(stock, sizes))
        objections.append(objection)
    return _Refused(_unreachable(stock, wishes, objections or [stock.objection(asked)]))


def _doubts(stock: Stock, sizes: Mapping[str, int]) -> tuple[str, ...]:
    return (doubt,) if sizes and (doubt := stock.doubt(sizes)) else ()


def _sizes(resolved: Sequence[ResolvedTarget], keep: Mapping[str, int]) -> dict[str, int]:
    """How many units stay of every group that loses some, where units compete inside of one group."""
    kept = {
        g.name: (keep[g.name] if g.name in keep else asked_of(g, item.target), g.size)
        for item in resolved
        for g in item.groups
    }
    return {name: n for name, (n, size) in kept.items() if n < size}


def _wishes(
    spec: PruneSpec, graph: DependencyGraph, targets: Mapping[str, Target], asked: Mapping[str, int]
) -> list[Wish]:
    wishes = []
    for kind in kinds_of(graph, asked):
        options: set[int] | None = None
        for group in kind.groups:
            mine = set(possible(group, targets[group.name], rules_for(group, graph, spec.export)))
            options = mine if options is None else options & mine
        wishes.append(Wish(kind, asked[kind.groups[0].name], tuple(sorted(options or ()))))
    return wishes


def _rounding(wish: Wish, kept: int, targets: Mapping[str, Target], name: str) -> str:
    group = wish.kind.groups[0]
    note = changed(group, asked_of(group, targets[group.name]), kept, f"the sizes that {name} can be built with")
    return note if len(wish.kind.groups) == 1 else f"{note} (in {plural(len(wish.kind.groups), 'group')})"


def _unreachable(stock: Stock, wishes: Sequence[Wish], objections: Sequence[str]) -> str:
    """Why no size near to what is asked for will do, and which would."""
    told = []
    for wish in wishes:
        if stock.accepts(wish.sizes(wish.asked), quick=True) or stock.accepts(wish.sizes(wish.asked)):
            continue
        known = accepted(stock, wish)
        takes = f"it takes {', '.join(map(str, known))}" if known else "it takes no other size"
        told.append(f"{wish.kind.role}: {wish.asked} of {wish.kind.size} units asked for, {takes}")
    return "; ".join([*told, objections[0]]) if told else objections[0]


def told(tier: ExportTarget) -> str:
    """How a folder of that tier is loaded, in words."""
    return {
        "hf": "loads with stock from_pretrained",
        "hf-remote-code": "loads with from_pretrained and trust_remote_code=True",
        "graphprune": "loads with graphprune.load",
    }[tier]


def _instead(refused: Mapping[ExportTarget, str]) -> str:
    others = " or ".join(told(tier).removeprefix("loads ") for tier in refused)
    return f"not {others}: {'; '.join(dict.fromkeys(refused.values()))}" if refused else ""


def _nowhere(spec: PruneSpec, refused: Mapping[ExportTarget, str]) -> str:
    reasons = "; ".join(f"{tier}: {reason}" for tier, reason in refused.items())
    if spec.export.runtimes:
        loaded = " and ".join(spec.export.runtimes)
        more = f"{loaded} (export.runtimes) can load nothing else. Ask for other sizes, or leave runtimes out."
    else:
        others = [t for t in ("hf", "hf-remote-code", "graphprune") if t not in refused]
        more = f"Ask for other sizes, or add {' or '.join(others)} to export.targets."
    wanted = " or ".join(refused)
    return f"export.targets: expected sizes of a result that loads as {wanted}, got others ({reasons}). {more}"
