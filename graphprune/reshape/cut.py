"""From a plan to indices: what stays of every dimension of every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from graphprune.errors import ReshapeError
from graphprune.graph import Axis, DependencyGraph, NormScale
from graphprune.plan import PrunePlan

#: Per tensor and dimension the sorted indices that stay.
Cuts = dict[str, dict[int, torch.Tensor]]


def kept_indices(axis: Axis, removed: tuple[int, ...]) -> torch.Tensor:
    """The sorted int64 indices of ``axis`` that belong to no removed unit."""
    return torch.nonzero(_stays(axis, removed)).flatten()


def plan_cuts(graph: DependencyGraph, plan: PrunePlan) -> Cuts:
    """What stays of every tensor that ``plan`` touches; a dimension that several groups cut keeps what all
    keep.

    Raises:
        PlanError: if the plan was made for another graph.
        ReshapeError: if two groups disagree about the length of a dimension, or nothing would stay of one.
    """
    plan.check(graph)
    stays: dict[str, dict[int, torch.Tensor]] = {}
    for name, units in plan.removed.items():
        members = graph.by_name[name].members if units else ()
        for member in (m for m in members if m.only is None):  # tensors of one unit alone go with its module
            dims = stays.setdefault(graph.tied.get(member.tensor, member.tensor), {})
            mine = _stays(member, units)
            other = dims.get(member.dim, mine)
            if len(other) != len(mine):
                raise ReshapeError(
                    f"dimension {member.dim} of '{member.tensor}' has {len(other)} indices for one group and "
                    f"{len(mine)} for '{name}'. The graph contradicts itself; please report it."
                )
            dims[member.dim] = other & mine
    empty = [f"{t} (dimension {d})" for t, dims in stays.items() for d, mask in dims.items() if not mask.any()]
    if empty:
        raise ReshapeError(f"the plan leaves nothing of {', '.join(empty)}. Keep at least one unit.")
    return {t: {d: torch.nonzero(mask).flatten() for d, mask in dims.items()} for t, dims in stays.items()}


@dataclass(frozen=True)
class Rescale:
    """What becomes of a norm's scale γ: (γ + ``offset``)·``factor`` − ``offset``."""

    factor: float = 1.0
    offset: float = 0.0

    def __call__(self, scale: torch.Tensor) -> torch.Tensor:
        """The new scale, in the dtype of the old one."""
        return ((scale + self.offset) * self.factor - self.offset).to(scale.dtype)


def norm_scales(graph: DependencyGraph, plan: PrunePlan) -> dict[str, Rescale]:
    """By what the scale of each norm over a cut axis is multiplied: √(all / kept).

    The norm divides by √(Σx²/n). With the removed entries silent, Σx² stays while n falls to n', so the quotient
    shrinks by √(n'/n); the scale γ·√(n/n') gives the old output back, up to the norm's epsilon.
    """
    return {norm.tensor: Rescale(math.sqrt(factor), norm.offset) for norm, factor in _shrinkages(graph, plan)}


def norm_epsilons(graph: DependencyGraph, plan: PrunePlan) -> dict[tuple[str, str], float]:
    """By what each norm's epsilon, as (module, attribute), is multiplied: all / kept, as the mean of squares is."""
    return {(norm.owner, norm.epsilon): factor for norm, factor in _shrinkages(graph, plan) if norm.epsilon}


def _shrinkages(graph: DependencyGraph, plan: PrunePlan) -> Iterator[tuple[NormScale, float]]:
    """All over kept entries of what each norm averages: only the groups that it runs over count."""
    pruned = [(graph.by_name[group], units) for group, units in plan.removed.items() if units]
    for norm in sorted({n for group, _ in pruned for n in group.norms}, key=lambda n: n.tensor):
        stays = torch.ones(graph.shapes[norm.tensor][0], dtype=torch.bool)
        for group, units in pruned:
            for member in group.members if norm in group.norms else ():
                if member.tensor == norm.tensor:
                    stays &= _stays(member, units)
        yield norm, len(stays) / int(stays.sum())


def cut_tensor(tensor: torch.Tensor, dims: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """A contiguous copy of ``tensor`` that keeps only the given indices of the given dimensions."""
    for dim, kept in dims.items():
        tensor = tensor.index_select(dim, kept.to(tensor.device))
    return tensor.contiguous()


def cut_shape(shape: tuple[int, ...], dims: Mapping[int, torch.Tensor]) -> tuple[int, ...]:
    """The shape of a tensor of ``shape`` after :func:`cut_tensor`."""
    return tuple(len(dims[d]) if d in dims else size for d, size in enumerate(shape))


def _stays(axis: Axis, removed: tuple[int, ...]) -> torch.Tensor:
    return ~torch.isin(axis.unit_of(), torch.tensor(removed, dtype=torch.int64))
