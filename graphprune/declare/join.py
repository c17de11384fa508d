"""Declared groups take their place in a graph: what they contradict, and which frozen groups become part of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from graphprune.declare.places import fit, relate
from graphprune.declare.values import Bound, Context, Cut, Place
from graphprune.graph import Axis, DependencyGraph, Group, Member

#: Removing units of these would change what goes in or comes out, whatever is declared.
_NEVER = {"vocab": "its units are token ids or outputs, and removing one changes what the model is asked or answers"}


@dataclass
class Board:
    """The groups of a graph while declared ones are put among them."""

    graph: DependencyGraph
    groups: dict[str, Group] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    joined: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _cutting: dict[Place, dict[str, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in self.graph.groups:
            self.put(group)

    def put(self, group: Group) -> None:
        """Adds a group at the end."""
        self.groups[group.name] = group
        for m in _slices(group):
            self._cutting.setdefault((m.tensor, m.dim), {})[group.name] = None

    def drop(self, name: str) -> None:
        """Takes a group away."""
        for m in _slices(self.groups.pop(name)):
            self._cutting[m.tensor, m.dim].pop(name, None)

    def cutting(self, place: Place) -> list[Group]:
        """The groups that run through a dimension."""
        return [self.groups[name] for name in self._cutting.get(place, ())]

    def layers(self, tensors: Iterable[str]) -> set[int]:
        """The layers of the groups that run through any of the tensors."""
        wanted = set(tensors)
        names = {name for (tensor, _), found in self._cutting.items() if tensor in wanted for name in found}
        return {layer for name in names if (layer := self.groups[name].layer) is not None}


def _slices(group: Group) -> Iterator[Member]:
    """The members that hold all units; those of one unit alone go with its module, whatever else cuts them."""
    return (m for m in group.members if m.only is None)


@dataclass
class Joint:
    """A declared group and the traced ones that became part of it."""

    bound: Bound
    cuts: dict[Place, Cut]
    absorbed: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the name of a traced group the unit of this one in which each of its units lies."""


def join(bound: Bound, board: Board, context: Context) -> Joint | None:
    """What a declaration takes in of the graph; None where it contradicts the graph.

    A frozen group whose units lie inside the declared ones becomes part of the declared group. What else it runs
    through must be declared too, or ``completes`` lets it join; it may lead on to further groups.
    """
    joint = Joint(bound, dict(bound.cuts))
    good = _follow(joint, list(joint.cuts), board, context)
    for group in bound.completed:
        if group.name not in joint.absorbed:
            before = set(joint.cuts)
            good = _take(joint, group, _same(group, bound.size), context) and good
            good = _follow(joint, [p for p in joint.cuts if p not in before], board, context) and good
    return joint if good else None


def _follow(joint: Joint, waiting: list[Place], board: Board, context: Context) -> bool:
    """Relates the group to all others along the waiting dimensions, and along those of what joins."""
    good, size = True, joint.bound.size
    while waiting:
        place = waiting.pop(0)
        for group in board.cutting(place):
            if group.name in joint.absorbed:
                continue
            theirs = _owner(m for m in group.members if (m.tensor, m.dim) == place)
            relation, inside = relate(joint.cuts[place].owner, theirs, size, group.size)
            if relation == "against":
                _tell_against(joint, group, place, board, context)
                good = False
            elif relation == "within" and _may_join(joint, group, place, board, context):
                before = set(joint.cuts)
                good = _take(joint, group, inside, context) and good
                waiting += [p for p in joint.cuts if p not in before]
            elif relation == "within":
                good = False
    return good


def _same(group: Group, size: int) -> torch.Tensor:
    """Each unit of a completed group is a unit of the declared one, where there are as many."""
    return torch.arange(group.size) if group.size == size else torch.full((group.size,), -1)


def _owner(members: Iterable[Axis]) -> torch.Tensor:
    """The owners of a dimension by several members of one group."""
    found: torch.Tensor | None = None
    for member in members:
        owner = member.unit_of()
        found = owner if found is None else torch.where(owner >= 0, owner, found)
    assert found is not None
    return found


def _may_join(joint: Joint, group: Group, place: Place, board: Board, context: Context) -> bool:
    """Whether a group whose units lie inside the declared ones may become part of them; tells why not."""
    bound, (tensor, dim) = joint.bound, place
    path = _path_of(joint, place)
    other = board.declared.get(group.name)
    what = f"dimension {dim} of '{tensor}'"
    if other is not None:
        text = f"{what} is cut by {other} too ('{group.name}'); an index belongs to one group only. Remove one of them"
        context.problems.add(path, f"with {other}", text)
    elif group.frozen is None and not bound.declared.completes:
        text = (
            f"{what} belongs to '{group.name}', which was traced whole and can be pruned as it is ({group.role}, "
            f"{group.size} units). Leave it out and select that group, or say 'completes: true' if more goes with it"
        )
        context.problems.add(path, "prunable", text)
    elif group.role in _NEVER:
        context.problems.add(path, "never", f"{what} must not be cut: {_NEVER[group.role]}")
    else:
        extra = _undeclared(joint, group)
        if not extra or bound.declared.completes:
            return True
        text = (
            f"{what} belongs to '{group.name}', which also runs through {_told(extra)}; cutting only a part of it "
            "would break the model. Add these members, or say 'completes: true' and they join by themselves"
        )
        context.problems.add(path, "part", text)
    return False


def _tell_against(joint: Joint, group: Group, place: Place, board: Board, context: Context) -> None:
    tensor, dim = place
    other = board.declared.get(group.name, "the trace")
    text = (
        f"the units contradict those that {other} has along dimension {dim} of '{tensor}': '{group.name}' has "
        f"{group.size} of them, which neither lie inside the {joint.bound.size} declared ones nor run across them. "
        "Correct size, start, length or blocks"
    )
    context.problems.add(_path_of(joint, place), "against", text)


def _undeclared(joint: Joint, group: Group) -> list[Member]:
    """What a group runs through that the declaration does not have."""
    return [
        m
        for m in group.members
        if (m.tensor, m.dim) not in joint.cuts
        or bool(((m.unit_of() >= 0) & (joint.cuts[m.tensor, m.dim].owner < 0)).any())
    ]


def _take(joint: Joint, group: Group, inside: torch.Tensor, context: Context) -> bool:
    """Makes a traced group part of the declared one; whether its other members can be divided alike."""
    joint.absorbed[group.name] = inside
    for m in group.members:
        place = (m.tensor, m.dim)
        owner = carried(m.unit_of(), inside)
        known = joint.cuts.get(place)
        if known is not None and bool((known.owner == owner)[owner >= 0].all()):
            new = (owner >= 0) & (known.owner < 0)
            owner = torch.where(new, owner, known.owner)
            blocks = fit(owner, joint.bound.size) if bool(new.any()) else known.blocks
        elif known is None:
            blocks = fit(owner, joint.bound.size)
        else:
            blocks = None
        if blocks is None:
            _tell_misfit(joint, group, m, context)
            return False
        joint.cuts[place] = Cut(blocks, owner, m.consumes or (known is not None and known.consumes))
    return True


def carried(owner: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Owners of a traced group as owners of the declared one that it became part of."""
    return torch.where(owner >= 0, inside[owner.clamp(min=0)], owner)


def carried_axis(axis: Axis, inside: torch.Tensor, size: int) -> Axis | None:
    """An axis of a traced group, divided among the declared units; None where these are not alike there."""
    blocks = fit(carried(axis.unit_of(), inside), size)
    return None if blocks is None else Axis(size=size, length=axis.length, blocks=blocks)


def _tell_misfit(joint: Joint, group: Group, member: Member, context: Context) -> None:
    bound = joint.bound
    text = (
        f"'{group.name}' has {group.size} units, which cannot be the {bound.size} declared ones in dimension "
        f"{member.dim} of '{member.tensor}'. Correct the size, or the places of the members"
    )
    context.problems.add(bound.path, "misfit", text)


def _path_of(joint: Joint, place: Place) -> str:
    """The member of the spec that a place comes from; the whole declaration where it joined by itself."""
    bound = joint.bound
    if place not in bound.cuts:
        return bound.path
    for index, member in enumerate(bound.declared.members):
        if member.dim == place[1] and place[0] in bound.tensors[index]:
            return f"{bound.path}.members[{index}]"
    return bound.path


def _told(members: list[Member]) -> str:
    names = list(dict.fromkeys(f"'{m.tensor}' (dimension {m.dim})" for m in members))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
