"""Units that are whole modules: the entries of a module list, and everything they have to themselves."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from graphprune.declare.patterns import fill
from graphprune.declare.values import Bound, Context
from graphprune.errors import ReshapeError
from graphprune.graph import Block, Member, Stack
from graphprune.names import plain, resolve_module
from graphprune.trace.stack import numbering


def count_entries(pattern: str, path: str, layer: int | None, context: Context) -> int | None:
    """How many modules the list has that a declaration names; None, and a problem, where it is no such list."""
    name = fill(pattern, layer)
    try:
        found = plain(resolve_module(context.model, name))
    except ReshapeError as error:
        context.problems.add(f"{path}.entries", "module", str(error))
        return None
    if not isinstance(found, nn.ModuleList) or len(found) < 2:
        got = f"a {type(found).__name__}" + (f" of {len(found)}" if isinstance(found, nn.ModuleList) else "")
        text = (
            f"expected a ModuleList of two or more at '{name}', got {got}; entries of other containers cannot move up"
        )
        context.problems.add(f"{path}.entries", "kind", text)
        return None
    return len(found)


def entry_stack(bound: Bound, context: Context) -> Stack | None:
    """The module list whose entries are the units, with what numbers them; None where units are slices only."""
    if bound.declared.entries is None:
        return None
    path = fill(bound.declared.entries, bound.layer)
    entries = plain(resolve_module(context.model, path))
    # Sizes may grow from entry to entry too, but not by one.
    numbers = tuple(n for n in numbering([plain(e) for e in entries.children()]) if n.scale == 1)
    return Stack(path=path, size=bound.size, numbering=numbers)


def entry_members(bound: Bound, context: Context) -> tuple[Member, ...]:
    """Every tensor that one entry has to itself, whole."""
    if bound.declared.entries is None:
        return ()
    inside: dict[str, set[int]] = defaultdict(set)
    for found in context.names.below(bound.declared.entries, bound.layer):
        if found.unit is not None:
            inside[found.tensor].add(found.unit)
    path = fill(bound.declared.entries, bound.layer) + "."
    members = []
    for tensor, units in inside.items():
        outside = any(not name.startswith(path) for name in context.names.all_of(tensor))
        if len(units) > 1 or outside:  # shared, so it stays as long as any of its holders
            continue
        shape = context.graph.shapes[tensor]
        length = shape[0] if shape else 1
        whole = Block(start=0, unit_stride=length, loops=((length, 1),) if length > 1 else ())
        members.append(Member(tensor=tensor, dim=0, size=bound.size, length=length, blocks=(whole,), only=min(units)))
    return tuple(members)
