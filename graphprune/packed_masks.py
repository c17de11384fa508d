"""Masks on the weights of quantised layers: codes cannot be multiplied, but what goes in and what comes out can."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graphprune.packed import Packed


class Spread(Protocol):
    """A unit mask spread over a dimension (:class:`graphprune.masking.Keep`)."""

    def like(self, tensor: Tensor, dim: int) -> Tensor:
        """The mask in dtype and on device of ``tensor``, shaped to broadcast along ``dim``."""


def mask_packed(weight: Packed, dim: int, keep: Spread) -> RemovableHandle:
    """Masks dimension ``dim``, in the graph's layout, of a quantised weight until the handle is removed.

    Silent input features are zeros in what the layer is given. Silent output features are zeros in what it gives, but
    for the bias, which is a tensor of its own and may have a mask of its own.
    """
    inputs = (dim % 2 == 1) != weight.transposed
    around = vars(weight.layer).get("forward")
    masks = around.masks if isinstance(around, _Around) else _Around(weight.layer).masks
    handle = RemovableHandle(masks)
    masks[handle.id] = (inputs, keep)
    return handle


class _Masks(OrderedDict[int, tuple[bool, Spread]]):
    """Masks by handle: whether inputs are masked, and with what. The layer is itself again when the last one goes."""

    def __init__(self, around: _Around) -> None:
        super().__init__()
        self._around = around

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        if not self:
            self._around.undo()


class _Around:
    """Stands for the forward of a layer while its weight is masked.

    It runs inside of all hooks, so the bias that it sees is masked already where it has a mask.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.masks = _Masks(self)
        self._layer = layer
        self._own = vars(layer).get("forward")  # offloading puts one on the instance
        self._forward = layer.forward
        vars(layer)["forward"] = self

    def undo(self) -> None:
        """Puts the layer's own forward back."""
        del vars(self._layer)["forward"]
        if self._own is not None:
            vars(self._layer)["forward"] = self._own

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for inputs, keep in self.masks.values():
            x = x * keep.like(x, -1) if inputs else x
        out: Tensor = self._forward(x, *args, **kwargs)
        bias: Tensor | None = getattr(self._layer, "bias", None)
        for inputs, keep in self.masks.values():
            if not inputs:
                stays = keep.like(out, -1)
                out = out * stays if bias is None else out * stays + bias.to(out) * (1 - stays)
        return out
