"""A declaration for one layer, bound to the tensors of a model: what it says, and whether that can be."""

from __future__ import annotations

import torch

from graphprune.declare.counts import count_units
from graphprune.declare.entries import entry_members, entry_stack
from graphprune.declare.patterns import Found, fill
from graphprune.declare.places import even_blocks, owners, strided_blocks
from graphprune.declare.problems import Problems
from graphprune.declare.values import Bound, Context, Cut
from graphprune.declared import DeclaredGroup, DeclaredMask, DeclaredMember, coefficients
from graphprune.graph import Block, Group


def bind(declared: DeclaredGroup, path: str, layer: int | None, context: Context) -> Bound | None:
    """The declaration as it stands for one layer; None where a problem keeps it from being read."""
    problems = context.problems
    tensors = [_tensors(m, f"{path}.members[{i}]", layer, context) for i, m in enumerate(declared.members)]
    completed = _completed(declared, path, layer, context)
    size = count_units(declared, path, layer, completed, context) if completed is not None else None
    if size is None or completed is None or any(found is None for found in tensors):
        return None
    bound = Bound(path, declared, layer, size, tuple(t or [] for t in tensors), completed=completed)
    bound.stack, bound.whole = entry_stack(bound, context), entry_members(bound, context)
    good = True
    for index, (member, found) in enumerate(zip(declared.members, bound.tensors, strict=True)):
        for tensor in found:
            good = _add(bound, member, tensor, f"{path}.members[{index}]", context) and good
    if declared.minimum >= size:
        text = f"expected less than the {size} units there are, got {declared.minimum}"
        problems.add(f"{path}.minimum", "minimum", text)
    return bound if good else None


def _tensors(member: DeclaredMember, path: str, layer: int | None, context: Context) -> list[str] | None:
    """The tensors that a member means in one layer, with as many dimensions as it needs."""
    found: list[Found] = context.names.find(member.tensor, layer)
    if not found:
        name = fill(member.tensor, layer)
        text = (
            f"expected a parameter or persistent buffer, but no name matches '{name}'{context.names.near(name)}. "
            "Correct the name, or narrow the layers."
        )
        context.problems.add(f"{path}.tensor", "missing", text)
        return None
    for f in found:
        shape = context.graph.shapes[f.tensor]
        if member.dim >= len(shape):
            text = f"expected one of the {len(shape)} dimensions of '{f.tensor}', {shape}, from 0 on; got {member.dim}"
            context.problems.add(f"{path}.dim", "dim", text)
            return None
    return list(dict.fromkeys(f.tensor for f in found))


def _completed(declared: DeclaredGroup, path: str, layer: int | None, context: Context) -> tuple[Group, ...] | None:
    """The traced groups that ``completes`` names; none where it only says yes and no group has the role."""
    if declared.completes is False:
        return ()
    frozen = [g for g in context.graph.groups if g.frozen is not None and not g.stacks]
    if declared.completes is True:
        fit = [g for g in frozen if g.role == declared.role and (layer is None or g.layer == layer)]
        return tuple(fit) if len(fit) == 1 else ()
    name = fill(declared.completes, layer)
    group = context.graph.by_name.get(name)
    if group is None:
        names = [g.name for g in frozen if layer is None or g.layer == layer]
        there = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") or "none"
        text = f"expected the name of a traced group, got '{name}', which is none; frozen ones are: {there}"
        context.problems.add(f"{path}.completes", "unknown", text)
        return None
    if group.stacks:
        context.problems.add(
            f"{path}.completes", "stacks", f"'{name}' is about whole modules, which have all they need"
        )
        return None
    return (group,)


def _add(bound: Bound, member: DeclaredMember, tensor: str, path: str, context: Context) -> bool:
    """Adds one dimension of one tensor to the declaration; whether it can be."""
    length = context.graph.shapes[tensor][member.dim]
    found = place_units(member, bound.size, length, f"dimension {member.dim} of '{tensor}'", path, context.problems)
    if found is None:
        return False
    blocks, owner = found
    place = (tensor, member.dim)
    before = bound.cuts.get(place)
    if before is None:
        bound.cuts[place] = Cut(blocks, owner, member.consumes)
        return True
    twice = torch.nonzero((before.owner >= 0) & (owner >= 0)).flatten()
    if len(twice):
        text = f"index {int(twice[0])} of dimension {member.dim} of '{tensor}' is in two members of this declaration"
        context.problems.add(path, "twice", text)
        return False
    both = torch.where(owner >= 0, owner, before.owner)
    bound.cuts[place] = Cut((*before.blocks, *blocks), both, before.consumes or member.consumes)
    return True


def _length(given: int | str, size: int) -> int:
    if isinstance(given, int):
        return given
    coefficient, constant = coefficients(given)
    return coefficient * size + (constant or 0)


def place_units(
    given: DeclaredMember | DeclaredMask, size: int, length: int, what: str, path: str, problems: Problems
) -> tuple[tuple[Block, ...], torch.Tensor] | None:
    """Where the units lie in a dimension of ``length`` indices; None, and a problem, where they cannot lie there."""
    if given.blocks is not None:
        blocks = strided_blocks(given.blocks)
        owner = owners(blocks, size, length)
        if isinstance(owner, str):
            problems.add(f"{path}.blocks", "blocks", f"{what}, {size} units: {owner}")
            return None
        return blocks, owner
    start = given.start or 0
    span = length - start if given.length is None else _length(given.length, size)
    if start + span > length or span < 1:
        text = f"expected a part of {what}, which has {length} indices, got {start}..{start + max(span, 1) - 1}"
        problems.add(f"{path}.{'start' if given.length is None else 'length'}", "outside", text)
        return None
    if span % size:
        text = (
            f"{what}: {span} indices cannot be shared evenly among {size} units. "
            "Give start and length or blocks, or correct the size."
        )
        problems.add(path, "uneven", text)
        return None
    blocks = even_blocks(size, start, span, interleaved=given.interleaved)
    found = owners(blocks, size, length)
    assert not isinstance(found, str), found
    return blocks, found
