"""Cutting constants that the forward pass computes and hands to a module, such as one bias per head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph
from graphprune.names import resolve_module
from graphprune.plan import PrunePlan
from graphprune.reshape.cut import kept_indices


class ConstantCut:
    """A forward pre-hook that keeps some indices of one argument. Deep-copies and pickles with its module.

    Args:
        argument: a keyword, or the position of a positional argument as text.
        dim: the dimension of that argument.
        length: its length before the cut; a dimension of length 1 is broadcast and left alone.
        kept: the sorted indices that stay.
    """

    def __init__(self, argument: str, dim: int, length: int, kept: torch.Tensor) -> None:
        self.argument = argument
        self.dim = dim
        self.length = length
        self.kept = kept

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, the constant cut."""
        if self.argument in kwargs:
            return args, {**kwargs, self.argument: self._cut(kwargs[self.argument], module)}
        if self.argument.isdigit() and int(self.argument) < len(args):
            i = int(self.argument)
            return (*args[:i], self._cut(args[i], module), *args[i + 1 :]), kwargs
        return args, kwargs

    def _cut(self, value: Any, module: nn.Module) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape[self.dim] == 1:
            return value
        if value.shape[self.dim] % self.length:
            raise ReshapeError(
                f"argument '{self.argument}' of {type(module).__name__} was expected to have a multiple of "
                f"{self.length} entries in dimension {self.dim}, got {value.shape[self.dim]}. "
                "Was the config changed after pruning?"
            )
        # Traced with a batch of one: where the batch is folded into this dimension, it lies outside of the units.
        repeats = torch.arange(value.shape[self.dim] // self.length, device=value.device) * self.length
        kept = (repeats[:, None] + self.kept.to(value.device)).reshape(-1)
        return value.index_select(self.dim, kept)


def constant_cuts(graph: DependencyGraph, plan: PrunePlan) -> list[tuple[str, ConstantCut]]:
    """The module paths and hooks that ``plan`` needs, one per cut argument and dimension."""
    found: dict[tuple[str, str, int], ConstantCut] = {}
    for constant in graph.constants:
        units = plan.removed.get(constant.group, ())
        if constant.buffer or not units:
            continue
        key = (constant.module, constant.argument, constant.dim)
        kept = kept_indices(constant.axis, units)
        if key in found:
            kept = kept[torch.isin(kept, found[key].kept)]
        found[key] = ConstantCut(constant.argument, constant.dim, constant.axis.length, kept)
    return [(module, cut) for (module, _, _), cut in found.items()]


def install(model: nn.Module, cuts: list[tuple[str, ConstantCut]]) -> None:
    """Registers the hooks. A constant that an earlier pruning cut already is cut further."""
    for path, cut in cuts:
        resolve_module(model, path).register_forward_pre_hook(cut, with_kwargs=True)
