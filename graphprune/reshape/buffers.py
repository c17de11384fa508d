"""Cutting buffers that are not in the checkpoint, such as a table of positions, and watching that they stay cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph
from graphprune.names import bare, resolve_owner
from graphprune.plan import PrunePlan
from graphprune.reshape.cut import Cuts, kept_indices
from graphprune.reshape.history import History
from graphprune.reshape.stacks import renaming


def buffer_cuts(model: nn.Module, graph: DependencyGraph, plan: PrunePlan) -> Cuts:
    """What stays of every dimension of every such buffer that ``plan`` touches, but for those of removed layers.

    Raises:
        ReshapeError: if a buffer is not what it was when traced.
    """
    found: Cuts = {}
    for name, constant in _buffers(graph, plan):
        owner, leaf = resolve_owner(model, name)
        shape = tuple(getattr(owner, leaf).shape)
        dim = constant.dim + len(shape)
        if dim < 0 or shape[dim] != constant.axis.length:
            raise ReshapeError(
                f"'{name}': expected length {constant.axis.length} in dimension {constant.dim}, which was traced, got "
                f"shape {shape}. Trace the model again and plan again."
            )
        kept = kept_indices(constant.axis, plan.removed[constant.group])
        dims = found.setdefault(name, {})
        dims[dim] = kept[torch.isin(kept, dims[dim])] if dim in dims else kept
    return found


def cut_buffers(model: nn.Module, history: History) -> dict[str, torch.Tensor]:
    """The buffers outside of the checkpoint that ``history`` cut, under every name that they have in ``model`` now."""
    names: set[str] = set()
    for step in history.steps:
        renamed = renaming(step.graph, step.plan)
        now = {renamed(name) for name in (*names, *(name for name, _ in _buffers(step.graph, step.plan)))}
        names = {name for name in now if name is not None}
    found = {}
    for name in names:
        owner, leaf = resolve_owner(model, name)
        found[name] = getattr(owner, leaf)
    shared = {id(tensor) for tensor in found.values()}
    return {**{n: t for n, t in bare(model).named_buffers(remove_duplicate=False) if id(t) in shared}, **found}


def _buffers(graph: DependencyGraph, plan: PrunePlan) -> list[tuple[str, Any]]:
    renamed = renaming(graph, plan)
    named = [(f"{c.module}.{c.argument}".lstrip("."), c) for c in graph.constants if c.buffer]
    return [(name, c) for name, c in named if plan.removed.get(c.group) and renamed(name) is not None]


class BufferGuard:
    """Hooks that notice when a module makes a cut buffer anew, for a longer text, say: it would come out uncut.

    Args:
        leaf: the buffer's name in its module.
        shape: its shape after the cut.
    """

    def __init__(self, leaf: str, shape: tuple[int, ...]) -> None:
        self.leaf = leaf
        self.shape = shape
        self._held: torch.Tensor | None = None

    def before(self, module: nn.Module, _args: Any) -> None:
        """A forward pre-hook: the buffer must be the cut one."""
        self._held = getattr(module, self.leaf)
        self._check(module, self._held)

    def after(self, module: nn.Module, _args: Any, _outputs: Any) -> None:
        """A forward hook: so must it be afterwards; moved to another device or dtype it may be."""
        held, self._held = self._held, None
        made = getattr(module, self.leaf)
        if held is None or made is held:
            return
        module._buffers[self.leaf] = held  # whoever catches the error can go on with shorter texts
        self._check(module, made)
        unknown = isinstance(made, FakeTensor) or made.is_meta or held.is_meta
        if not unknown and not torch.equal(held.to(made), made):
            raise ReshapeError(self._told(module, "other values than the ones that were cut"))
        module._buffers[self.leaf] = made

    def _check(self, module: nn.Module, made: torch.Tensor) -> None:
        if tuple(made.shape) != self.shape:
            raise ReshapeError(self._told(module, f"shape {tuple(made.shape)}, expected {self.shape}"))

    def _told(self, module: nn.Module, got: str) -> str:
        return (
            f"{type(module).__name__} has made its buffer '{self.leaf}' anew, which was cut with the pruned units: got "
            f"{got}. It does so for texts that are longer than the buffer, for example; give shorter ones, or prune a "
            "model whose config allows longer ones."
        )


def watch(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> None:
    """Guards the buffer ``leaf`` of ``module``; a guard that it has already learns the new shape."""
    for hook in module._forward_hooks.values():
        guard = getattr(hook, "__self__", None)
        if isinstance(guard, BufferGuard) and guard.leaf == leaf:
            guard.shape = shape
            return
    guard = BufferGuard(leaf, shape)
    module.register_forward_pre_hook(guard.before)
    module.register_forward_hook(guard.after)
