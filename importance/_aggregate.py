"""From one vector of unit scores per member to one per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from graphprune.errors import CriterionError
from graphprune.graph import Group

#: How the scores of a group's members become the group's: LLM-Pruner, section 3.2, "group importance"
#: (https://arxiv.org/abs/2305.11627). ``first`` and ``last`` take one member, in the group's order.
Aggregate = Literal["sum", "mean", "max", "prod", "first", "last"]


def aggregate(group: Group, vectors: Sequence[torch.Tensor], how: Aggregate) -> torch.Tensor:
    """Combines the members' unit scores, each of shape ``(group.size,)``, to one float32 vector.

    Raises:
        CriterionError: if no member contributed, or units are whole modules, whose tensors are not alike, and ``how``
            multiplies members or picks one.
    """
    if not vectors:
        raise CriterionError(
            f"group '{group.name}' has no tensor that this criterion can score. Choose another criterion."
        )
    if group.stacks and how in ("prod", "first", "last"):
        raise CriterionError(
            f"group '{group.name}' has units that are whole modules, each with tensors that no other unit has, so "
            f"members cannot be combined by '{how}'. Choose sum, mean or max."
        )
    stack = torch.stack([v.to(vectors[0].device) for v in vectors])
    match how:
        case "sum":
            out = stack.sum(dim=0)
        case "mean":
            out = stack.mean(dim=0)
        case "max":
            out = stack.amax(dim=0)
        case "prod":
            out = stack.prod(dim=0)
        case "first":
            out = stack[0]
        case "last":
            out = stack[-1]
    return out.float()
