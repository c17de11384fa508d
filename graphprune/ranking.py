"""From scores to a plan: which units go. Pure: the same graph, spec and scores give the same plan."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch

from graphprune.errors import NonFiniteError, PlanError, SpecError
from graphprune.export.limits import Limits, step_of, structural
from graphprune.graph import DependencyGraph, Group
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec, Target
from graphprune.validate import resolve_targets

#: Units that go together because kept sizes are multiples of something: (mean score, group, units).
Chunk = tuple[float, int, tuple[int, ...]]


def plan(
    graph: DependencyGraph,
    spec: PruneSpec,
    scores: Mapping[str, torch.Tensor],
    *,
    fraction: float = 1.0,
    base: PrunePlan | None = None,
    limits: Limits | None = None,
) -> PrunePlan:
    """Chooses the lowest-scored units of every target.

    *How many.* ``ratio`` removes ``floor(size·ratio)`` units, ``count`` that many of each group, ``keep`` all
    but that many. Kept sizes are rounded up to ``multiple_of`` and to the group's minimum; where that changes
    the result, the plan's notes say so. Counts are exact: ties go by group and unit index, never by a
    threshold.

    *Who competes* (``spec.scope``). ``layer``: the units of one group. ``role``: all units of one role of a
    target. ``global``: all units of a target. In a shared pool the amount is that of the pool (``ratio`` of
    all its units, ``count`` and ``keep`` summed over its groups), so layers may end with different sizes.
    Scores of different roles are not comparable: a head sums over many more weights than a channel, so
    pooling raw sums spares every head. A global pool therefore divides each score by the mean score of its
    role. A head still counts as one unit there, as does a channel; give each role a target of its own to
    control both amounts.

    Args:
        graph: the model's dependency graph.
        spec: targets and scope are read.
        scores: by group name, shape ``(group.size,)``; higher means keep. Other groups' scores are ignored.
        fraction: progress in [0, 1] of a schedule: ``amount·fraction`` units go, to the nearest. (Rounding down,
            as the published code does, would keep the last of a few heads until the very end.)
        base: an earlier plan. Its units are gone for good and count towards the amount: masks only grow.
        limits: what the export asks of sizes, as :func:`graphprune.export.fit` finds out for a model; without it, what
            the spec's ``export`` asks of any model (``multiple_of``, ``tensor_parallel``, rows for ``runtimes``).

    Raises:
        SpecError: the spec does not fit the graph.
        PlanError: scores are missing or of the wrong shape, or ``base`` belongs to another graph.
        NonFiniteError: a score is NaN or infinite; names the group and the unit.
    """
    if not 0.0 <= fraction <= 1.0:
        raise PlanError(f"the fraction of a schedule lies in [0, 1], got {fraction}")
    if base is not None:
        base.check(graph)
    resolved = resolve_targets(spec, graph)
    if limits is None:
        limits, problems = structural(spec, graph, resolved)
        if problems:
            raise SpecError(problems)
    removed = {name: set(units) for name, units in base.removed.items()} if base else {}
    notes: Counter[str] = Counter()
    for item in resolved:
        values = {g.name: _checked(g, scores) for g in item.groups}
        for pool in _pools(item.groups, spec.scope):
            asked = _asked(item.target, pool, limits)
            budget = math.floor(asked * fraction + 0.5)
            multiples = {g.name: _multiple(g, item.target, limits) for g in pool}
            _remove(pool, values, budget, multiples, removed)
            if fraction == 1.0:
                notes.update(_note(pool, asked, removed, math.lcm(*multiples.values())))
    made = PrunePlan.remove(graph, removed)
    lines = [*(note for item in resolved for note in item.notes), *limits.notes]
    lines += [text if count == 1 else f"{text} (in {count} groups)" for text, count in notes.items()]
    targets = tuple(g.name for item in resolved for g in item.groups)
    return made.model_copy(update={"notes": tuple(lines), "targets": targets})


def _remove(
    pool: Sequence[Group],
    values: Mapping[str, torch.Tensor],
    budget: int,
    multiples: Mapping[str, int],
    removed: dict[str, set[int]],
) -> None:
    """Adds the cheapest chunks of the pool to ``removed`` until ``budget`` units of the pool are gone."""
    left = budget - sum(len(removed.get(g.name, ())) for g in pool)
    if left <= 0:
        return
    means = _role_means(pool, values, removed)
    chunks = [
        chunk
        for index, group in enumerate(pool)
        for chunk in _chunks(group, index, values[group.name] / means[group.role], multiples[group.name], removed)
    ]
    closed: set[int] = set()
    # Python's sort is stable, so equal chunks keep the order of groups and units.
    for _, index, units in sorted(chunks, key=lambda chunk: chunk[:2]):
        if index in closed:
            continue
        if not _leaves_one_of_each(pool[index], removed.get(pool[index].name, set()) | set(units)):
            continue
        if len(units) > left:
            closed.add(index)  # later chunks of this group must not overtake this one
            continue
        removed.setdefault(pool[index].name, set()).update(units)
        left -= len(units)
        if left == 0:
            return


def _leaves_one_of_each(group: Group, gone: set[int]) -> bool:
    return not any(gone.issuperset(kind) for kind in group.essential)


def _chunks(
    group: Group, index: int, values: torch.Tensor, multiple: int, removed: Mapping[str, set[int]]
) -> Iterator[Chunk]:
    """The units of ``group`` that may still go, cheapest first, cut so that kept sizes are multiples."""
    gone = removed.get(group.name, set())
    order = [u for u in torch.sort(values, stable=True).indices.tolist() if u not in gone]
    score = values.tolist()
    kept, start = len(order), 0
    while True:
        size = kept % multiple or multiple
        if kept - size < group.minimum:
            return
        units = tuple(order[start : start + size])
        yield sum(score[u] for u in units) / size, index, units
        kept, start = kept - size, start + size


def _role_means(
    pool: Sequence[Group], values: Mapping[str, torch.Tensor], removed: Mapping[str, set[int]]
) -> dict[str, float]:
    """The mean absolute score of the remaining units of every role; 1 where that is zero."""
    if len({g.role for g in pool}) == 1:
        return {pool[0].role: 1.0}  # nothing to make comparable
    total: dict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    for group in pool:
        keep = torch.ones(group.size, dtype=torch.bool)
        keep[list(removed.get(group.name, ()))] = False
        total[group.role] += float(values[group.name][keep].abs().sum())
        count[group.role] += int(keep.sum())
    return {role: total[role] / max(count[role], 1) or 1.0 for role in count}


def _pools(groups: Sequence[Group], scope: str) -> list[tuple[Group, ...]]:
    if scope == "layer":
        return [(g,) for g in groups]
    if scope == "global":
        return [tuple(groups)] if groups else []
    return [tuple(g for g in groups if g.role == role) for role in dict.fromkeys(g.role for g in groups)]


def _multiple(group: Group, target: Target, limits: Limits) -> int:
    """What the number of units that stay is a multiple of."""
    multiple = math.lcm(step_of(group, target), limits.multiples.get(group.name, 1))
    return math.gcd(multiple, limits.keep.get(group.name, 0)) or multiple


def _asked(target: Target, pool: Sequence[Group], limits: Limits) -> int:
    """How many units of the pool are asked to go, before any rounding."""
    if len(pool) == 1 and pool[0].name in limits.keep:
        return pool[0].size - limits.keep[pool[0].name]
    plain = target.model_copy(update={"multiple_of": 1})
    if target.ratio is not None:
        size = sum(g.size for g in pool)
        return size - plain.kept(size)
    return sum(g.size - plain.kept(g.size) for g in pool)


def _note(pool: Sequence[Group], asked: int, removed: Mapping[str, set[int]], multiple: int) -> Iterator[str]:
    """Says so where rounding, a minimum or an earlier plan changed the amount that was asked for."""
    got = sum(len(removed.get(g.name, ())) for g in pool)
    if got == asked:
        return
    size = sum(g.size for g in pool)
    reasons = []
    if multiple > 1:
        reasons.append(f"multiple_of {multiple}")
    if got < asked and max(g.minimum for g in pool) > 1:
        reasons.append(f"minimum {max(g.minimum for g in pool)}")
    if got > asked:
        reasons = ["the earlier plan had removed more"]
    roles = ", ".join(dict.fromkeys(g.role for g in pool))
    because = " and ".join(reasons) or f"minimum {max(g.minimum for g in pool)}"
    yield f"{roles}: keeps {size - got} of {size} units where {size - asked} were asked for ({because})"


def _checked(group: Group, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if group.name not in scores:
        raise PlanError(
            f"no scores for group '{group.name}', which a target selects; got scores for {len(scores)}. "
            "Score the model with the same spec and graph."
        )
    values = scores[group.name].detach().to("cpu", torch.float64)
    if values.shape != (group.size,):
        raise PlanError(
            f"group '{group.name}' has {group.size} units, expected scores of shape ({group.size},), "
            f"got {tuple(values.shape)}"
        )
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"group '{group.name}': {len(bad)} of {group.size} scores are NaN or infinite, first at unit "
            f"{bad[0]} ({values[bad[0]].item()}). Check the data, the learning rate and the precision."
        )
    return values
