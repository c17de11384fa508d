"""The same question in float64, for models in which float32 rounding decides a choice.

A router that picks among near ties turns round when its input moves by one unit in the last place, and everything
behind it moves with it. In float64 the tie is none; a cut that is wrong is as wrong there as in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from graphprune.trace.substitutes import experts_in_batches


def in_float64(model: nn.Module) -> nn.Module | None:
    """A copy of ``model`` in float64; None where there is no memory for it beside its gradients."""
    bytes_of_copy = 8 * sum(p.numel() for p in model.parameters())
    if 2 * bytes_of_copy > psutil.virtual_memory().available:
        return None
    return copy.deepcopy(model).double()


def widened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with their floating-point tensors in float64."""
    return {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in inputs.items()}


@contextmanager
def computing_in_float64(model: nn.Module) -> Iterator[None]:
    """Inside, whatever ``model`` asks for in float32 is computed in float64, and its experts by kernels that can."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with experts_in_batches(model), _Float64():
            yield
    finally:
        torch.set_default_dtype(default)


class _Float64(TorchFunctionMode):
    """Norms and routers convert to float32, which would bring the rounding back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "float":
            return args[0].double()
        return func(*tree_map(_wide, args), **tree_map(_wide, kwargs or {}))


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
