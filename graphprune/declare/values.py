"""What is passed along while declarations are bound to a model: the context, and a declaration in one layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from graphprune.declare.patterns import TensorNames
from graphprune.declare.problems import Problems
from graphprune.declared import DeclaredGroup
from graphprune.graph import Block, DependencyGraph, Group, Member, Stack

Place = tuple[str, int]
"""A tensor and one of its dimensions."""


@dataclass(frozen=True)
class Context:
    """What declarations are checked against, and where problems go."""

    graph: DependencyGraph
    names: TensorNames
    model: nn.Module
    problems: Problems


@dataclass
class Cut:
    """Where a group's units lie in one dimension: ``owner`` is the unit of every index, -1 for none."""

    blocks: tuple[Block, ...]
    owner: torch.Tensor
    consumes: bool = False


@dataclass
class Bound:
    """A declaration in one layer.

    Attributes:
        path: of the declaration in the spec, such as ``groups[0]``.
        declared: what the spec says.
        layer: what {layer} stands for; None for a declaration without it.
        size: how many units.
        cuts: where the units lie.
        tensors: what each member's name stands for.
        stack: the module list whose entries are the units, where they are whole modules.
        whole: the tensors that single units have to themselves.
        completed: frozen groups of the trace that are named as a part of this one.
    """

    path: str
    declared: DeclaredGroup
    layer: int | None
    size: int
    tensors: tuple[list[str], ...]
    cuts: dict[Place, Cut] = field(default_factory=dict)
    completed: tuple[Group, ...] = ()
    stack: Stack | None = None
    whole: tuple[Member, ...] = ()

    @property
    def where(self) -> str:
        """`` in layer 3``, or nothing."""
        return "" if self.layer is None else f" in layer {self.layer}"
