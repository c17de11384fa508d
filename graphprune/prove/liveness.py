"""A second oracle that reshapes nothing: under the mask, no gradient may reach what is going to be removed.

If a removed slice still has a gradient, the outputs depend on it, and cutting it changes them. This finds slices that
belong to another unit or that the mask does not silence, and it is independent of how tensors are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.graph import DependencyGraph, Group, Member
from graphprune.masking import masked
from graphprune.names import resolve_tensor
from graphprune.plan import PrunePlan
from graphprune.prove.subject import logits_of, told


@dataclass(frozen=True)
class Liveness:
    """Where gradients arrived.

    Attributes:
        alive: dimensions of tensors, as ``name (dimension d)``, of which a removed slice has a gradient.
        unreached: groups of which no unit that stays has one, though not all their tensors go with a module.
    """

    alive: tuple[str, ...]
    unreached: tuple[str, ...]


def liveness(
    model: nn.Module, graph: DependencyGraph, plan: PrunePlan, inputs: Mapping[str, Any], seed: int
) -> Liveness:
    """Runs a backward pass of a random projection of the masked model's logits; the model is left as it was."""
    groups = [graph.by_name[name] for name, units in plan.removed.items() if units]
    names = dict.fromkeys(m.tensor for g in groups for m in g.members)
    tensors = {name: resolve_tensor(model, name) for name in names}
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point()}
    with _differentiable(tensors.values()), torch.enable_grad(), masked(model, plan, graph):
        logits = logits_of(model, inputs)
        finite = torch.where(logits.isfinite(), logits, torch.zeros_like(logits))
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(finite.shape, generator=generator).to(finite)
        found = torch.autograd.grad((finite * weights).sum(), list(tensors.values()), allow_unused=True)
    gradients = dict(zip(tensors, found, strict=True))
    alive: dict[str, None] = {}
    unreached = []
    for group in groups:
        seen = _goes_whole(graph, plan, group)
        for member in group.members:
            gradient = gradients.get(member.tensor)
            if gradient is None:
                continue
            inside, outside = _arrives(member, gradient, plan.removed[group.name])
            seen = seen or outside
            if inside:
                alive[f"{member.tensor} (dimension {member.dim})"] = None
        if not seen:
            unreached.append(group.name)
    return Liveness(tuple(alive), tuple(unreached))


def unlearnable(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Why a backward pass through the unmasked model is impossible in evaluation mode, or None."""
    some = [p for p in model.parameters() if p.is_floating_point()]
    try:
        with _differentiable(some), torch.enable_grad():
            torch.autograd.grad(logits_of(model, inputs).sum(), some, allow_unused=True)
    except Exception as error:  # noqa: BLE001 - the model's own backward fails, in any way it likes
        return told(error)
    return None


def _goes_whole(graph: DependencyGraph, plan: PrunePlan, group: Group) -> bool:
    """Whether all tensors of the group go with a module that is removed."""
    gone = {
        m.tensor
        for name, units in plan.removed.items()
        for m in graph.by_name[name].members
        if m.only is not None and m.only in units
    }
    return all(m.only is None and m.tensor in gone for m in group.members)


def _arrives(member: Member, gradient: Tensor, removed: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether some removed unit has a gradient (NaN counts), and whether some other unit has one."""
    moved = (gradient != 0).movedim(member.dim, 0)  # NaN is not 0
    along = moved.flatten(1).any(1) if moved.ndim > 1 else moved
    owner = member.unit_of().to(along.device)
    gone = torch.isin(owner, torch.tensor(removed, device=along.device))
    return bool((along & gone).any()), bool((along & ~gone & (owner >= 0)).any())


@contextmanager
def _differentiable(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Every tensor asks for a gradient inside the block, frozen parameters and buffers too."""
    changed = [t for t in tensors if not t.requires_grad]
    for tensor in changed:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in changed:
            tensor.requires_grad_(False)
