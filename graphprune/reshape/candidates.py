"""Which integers of a config could have to change, and to what: candidates, found by value and proved by building."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from graphprune.graph import Group
from graphprune.reshape.history import Step

Path = tuple[str, ...]
"""Where a field is in a config, sub-configs first."""
Changes = dict[Path, Any]
Shapes = dict[str, tuple[int, ...]]
Build = Callable[[Changes], Shapes | None]
"""Builds the model with some fields changed and returns its shapes, or None where the config is refused."""

#: No more than this many configs are built in search of one that fits.
MOST_BUILDS = 300


def fields(config: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All integers, and lists of integers, of a config and its sub-configs."""
    for name, value in config.items():
        if name.startswith("_") or name.endswith("_id"):  # private, or a token's number
            continue
        if isinstance(value, dict) and "model_type" in value:
            yield from fields(value, (*path, name))
        elif (_is_int(value) and value > 1) or (isinstance(value, list) and value and all(_is_int(v) for v in value)):
            yield (*path, name), value


def uneven(step: Step) -> str | None:
    """Names two groups of the same kind, in different layers, that end with different sizes."""
    seen: dict[tuple[str, int], tuple[str, int]] = {}
    after = step.plan.sizes_after()
    for group in step.graph.groups:
        name, kept = seen.setdefault(kind_key(group), (group.name, after[group.name]))
        if kept != after[group.name]:
            return f"'{name}' keeps {kept} of {group.size} units and '{group.name}' keeps {after[group.name]}"
    return None


def kind_key(group: Group) -> tuple[str, int]:
    """Equal for groups of the same kind: of one role and size, through tensors of the same names but for numbers."""
    return "|".join([group.role, *(re.sub(r"\d+", "#", m.tensor) for m in group.members)]), group.size


def candidates(config: dict[str, Any], step: Step) -> list[tuple[Path, Any]]:
    """Fields whose value contains the size of a pruned group as a factor, with that factor replaced."""
    pairs = _factors(step)
    found: dict[tuple[Path, str], tuple[Path, Any]] = {}
    for path, value in fields(config):
        options: list[Any] = []
        for size, kept in sorted(pairs):
            if _is_int(value) and value % size == 0:
                options.append(value // size * kept)
            elif not _is_int(value) and all(v % size == 0 for v in value):
                options.append([v // size * kept for v in value])
        if not _is_int(value) and len(value) == step.graph.layers:
            options.extend(_per_layer(value, step))
        for option in options:
            found[(path, repr(option))] = (path, option)
    return list(found.values())


def unset(config: dict[str, Any], step: Step, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Fields without a value, with the sizes of pruned groups: the class has a default for them that is not written."""
    kept = sorted({kept for _, kept in _factors(step)})
    for name, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from unset(value, step, (*path, name))
        elif value is None and not (name.startswith("_") or name.endswith("_id")):
            yield from (((*path, name), size) for size in kept)


def _factors(step: Step) -> set[tuple[int, int]]:
    """Sizes before and after of every pruned group, and of groups that run through one dimension their product."""
    after = step.plan.sizes_after()
    through: dict[tuple[str, int], set[str]] = {}
    for group in step.graph.groups:
        if after[group.name] != group.size:
            for m in (m for m in group.members if m.only is None):
                through.setdefault((m.tensor, m.dim), set()).add(group.name)
    found: set[tuple[int, int]] = set()
    for names in {frozenset(names) for names in through.values()}:
        for count in range(1, len(names) + 1):
            for some in itertools.combinations(sorted(names), count):
                sizes = [step.plan.sizes[n] for n in some]
                found.add((math.prod(sizes), math.prod(after[n] for n in some)))
    return found


def _per_layer(value: list[int], step: Step) -> Iterator[list[int]]:
    """A list with one entry per layer, each scaled like the group of one role in its layer."""
    after = step.plan.sizes_after()
    for role in sorted({g.role for g in step.graph.groups if after[g.name] != g.size}):
        scaled = list(value)
        for g in step.graph.groups:
            if g.role == role and g.layer is not None and scaled[g.layer] % g.size == 0:
                scaled[g.layer] = scaled[g.layer] // g.size * after[g.name]
        yield scaled


def numbers_of_entries(
    config: dict[str, Any], size: int, kept: list[int], path: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """Fields that may speak of entries of a module list by their numbers, with what they would say once some are gone.

    An integer as how many come first (so many dense layers), a growing list as the ones that are meant.

    Args:
        config: as plain values.
        size: how many entries there were.
        kept: the numbers of those that stay.
        path: where ``config`` is in a larger one.
    """
    for name, value in config.items():
        new: Any = value
        if name.startswith("_") or name.endswith("_id"):  # private, or a token's number
            continue
        if isinstance(value, dict) and "model_type" in value:
            yield from numbers_of_entries(value, size, kept, (*path, name))
        elif _is_int(value) and 1 <= value <= size:
            new = sum(number < value for number in kept)
        elif isinstance(value, list) and all(_is_int(v) and 0 <= v < size for v in value):
            new = [kept.index(v) for v in value if v in kept] if value == sorted(set(value)) else value
        if new != value:
            yield (*path, name), new


def matching(
    build: Build, start: Changes, options: list[tuple[Path, Any]], base: Shapes, target: Shapes
) -> Iterator[Changes]:
    """Sets of changes, smallest plausible first, whose model has exactly the shapes ``target``.

    Fields that change no shape come last, one or two beside each set found: a forward pass may still read them.
    """
    kinds: dict[str, list[tuple[Path, Any]]] = {}
    begun = build(start)
    if begun is not None and begun.keys() == target.keys() != base.keys():
        base = begun  # layers went; what is left is to be compared with what is left
    if base.keys() != target.keys():
        return  # no config leaves exactly these layers
    for path, value in options:
        if path not in start:
            kind = _judge(build({**start, path: value}), base, target)
            kinds.setdefault(kind, []).append((path, value))
    pool = [option for kind in ("exact", "partial", "refused") for option in kinds.get(kind, ())]
    tries = itertools.chain(
        [(), tuple(kinds.get("exact", ()))],
        itertools.chain.from_iterable(itertools.combinations(pool, n) for n in range(1, 5)),
    )
    found: list[Changes] = []
    for chosen in itertools.islice(tries, MOST_BUILDS):
        changes = {**start, **dict(chosen)}
        distinct = len(dict(chosen)) == len(chosen) and changes not in found
        if distinct and build(changes) == target:
            found.append(changes)
            yield changes
    idle = kinds.get("idle", ())
    for changes in found:
        for more in itertools.chain(itertools.combinations(idle, 1), itertools.combinations(idle, 2)):
            both = {**changes, **dict(more)}
            if build(both) == target:
                yield both


def _judge(shapes: Shapes | None, base: Shapes, target: Shapes) -> str:
    """What changing one field alone does, compared with what is wanted."""
    if shapes is None:
        return "refused"
    if shapes.keys() != base.keys():
        return "harmful"
    moved = [name for name, shape in shapes.items() if shape != base[name]]
    if not moved:
        return "idle"
    exact = True
    for name in moved:
        for was, now, wanted in zip(base[name], shapes[name], target[name], strict=True):
            if was == now:
                continue
            if was == wanted:
                return "harmful"
            exact = exact and now == wanted
    return "exact" if exact else "partial"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
