"""Constants that a group runs through: what is handed to a module, and buffers that are not in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from graphprune.graph import Axis, ConstantSlice
from graphprune.trace.axes import Atom, Expr, fresh, length
from graphprune.trace.places import places
from graphprune.trace.record import Info
from graphprune.trace.tracer import Tracer

Name = Callable[[Atom], str | None]


def register_buffers(tracer: Tracer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives buffers that are not in the checkpoint (tables of positions, say) fresh axes, one per dimension.

    Only floating-point ones: what is left of integers that point somewhere might point beside it.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tracer.buffers[name] = tuple(fresh(n) for n in tensor.shape)
            tracer.records.put(tensor, Info(tracer.buffers[name], kept=True))
            tracer.records.alive.append(tensor)


def constant_slices(tracer: Tracer, name: Name) -> tuple[ConstantSlice, ...]:
    """The slices of constants that go with units; ``name`` gives the group of an atom whose units may go."""
    return tuple(
        ConstantSlice(
            group=group,
            module=module,
            argument=argument,
            dim=d - len(dims),
            axis=Axis(size=atom.size, length=length(expr), blocks=tuple(blocks)),
            buffer=buffer,
        )
        for module, argument, dims, buffer in _constants(tracer)
        for d, expr in enumerate(dims)
        for atom, blocks in places(expr).items()
        if (group := name(atom)) is not None
    )


def _constants(tracer: Tracer) -> Iterator[tuple[str, str, tuple[Expr, ...], bool]]:
    for fork in tracer.records.forks.values():
        if fork.argument is not None:
            yield fork.module, fork.argument, fork.info.dims, False
    for name, dims in tracer.buffers.items():
        module, _, leaf = name.rpartition(".")
        yield module, leaf, dims, True
