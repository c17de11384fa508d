"""A training that has diverged stops at once, and says where."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from graphprune import processes
from graphprune.errors import NonFiniteError
from graphprune.graph import Group

_NEXT = "The loss has diverged: lower the learning rate, and check the data and the precision."


def check_gradients(names: list[str], groups: Iterable[Group], step: int) -> None:
    """Raises :class:`NonFiniteError` with the first of the NaN or infinite gradients, its group, and the step.

    Clipping by a norm that is NaN makes every gradient NaN, so after it the first one need not be the culprit; the
    message says how many there are. All processes of a training raise, or none.

    Args:
        names: those of :func:`nonfinite_gradients`; none where all is well.
        groups: what is pruned.
        step: of the optimizer.
    """
    if not processes.any_of(bool(names)):
        return
    if not names:
        raise NonFiniteError(f"a gradient in another process is NaN or infinite at step {step}. {_NEXT}")
    name, others = names[0], len(names) - 1
    near = (g.name for g in groups for m in g.members if f".{m.tensor.rpartition('.')[0]}." in f".{name}")
    group = next(near, None)
    where = f"group '{group}': " if group else ""
    more = f" (and of {others} more)" if others else ""
    raise NonFiniteError(f"{where}the gradient of '{name}'{more} is NaN or infinite at step {step}. {_NEXT}")


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """The names of the parameters whose gradients are not finite, in the model's order.

    Of a parameter that is divided among processes, the own part counts.
    """
    gradients = {n: _own(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    if _sums_finite(gradients.values()):
        return []
    return [n for n, g in gradients.items() if not bool(torch.isfinite(g).all())]


def _own(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _sums_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """One comparison per device; a finite sum proves finite elements, the reverse is not certain."""
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:  # summed in float32 without a copy in it; a number read from a device waits for the device
        kind = torch.promote_types(tensor.dtype, torch.float32)
        sums.setdefault(tensor.device, []).append(tensor.detach().sum(dtype=kind).float())
    return all(bool(torch.isfinite(torch.stack(found)).all()) for found in sums.values())
