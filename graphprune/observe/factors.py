"""Base weights and low-rank factors of a model, by the graph's tensor names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.divided import shape_of, whole, zeros
from graphprune.errors import CriterionError
from graphprune.importance.base import LoraFactors
from graphprune.names import plain, resolve_tensor
from graphprune.packed import Packed, packed, packed_in
from graphprune.reshape.adapters import adapter_layers


def base_weight(model: nn.Module, tensor: str) -> Tensor:
    """The base tensor without adapters, detached; of a layer quantised by bitsandbytes all of it, dequantised.

    Raises:
        CriterionError: if an adapter is merged into it, or if it is stored in another packed format.
    """
    value = _base(model, tensor)
    return value.whole() if isinstance(value, Packed) else whole(value)


def base_shape(model: nn.Module, tensor: str) -> torch.Size:
    """The shape of :func:`base_weight`, for which nothing is dequantised; errors as there."""
    value = _base(model, tensor)
    return value.shape if isinstance(value, Packed) else shape_of(value)


class BaseRows:
    """Rows of :func:`base_weight` seen as a matrix ``(-1, last dimension)``; only these are dequantised.

    Finding a tensor by its name takes as long as computing on a tile of it, so the tensor is looked up once. So it is
    gathered once where every process holds a part of it.
    """

    def __init__(self, model: nn.Module, tensor: str) -> None:
        self.tensor = tensor
        base = _base(model, tensor)
        if not isinstance(base, Packed):
            base = whole(base)
            base = base.reshape(-1, base.shape[-1])
        self._base = base

    def __call__(self, start: int, stop: int) -> Tensor:
        return self._base.rows(start, stop) if isinstance(self._base, Packed) else self._base[start:stop]


#: Tells the gradient of a parameter that is trained, all of it; None where it has none.
GradientOf = Callable[[nn.Parameter], Tensor | None]


def own_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The gradient that hangs on a parameter; every process has to call this where the parameter is divided."""
    return None if parameter.grad is None else whole(parameter.grad)


def _base(model: nn.Module, tensor: str) -> Tensor | Packed:
    for layer in adapter_layers(model, tensor):
        if layer.merged:
            raise CriterionError(
                f"an adapter is merged into '{tensor}', so the base weight cannot be read. "
                "Call unmerge_adapter() first."
            )
    codes = packed(model, tensor)
    if codes is not None:
        return codes
    value = resolve_tensor(model, tensor)
    if isinstance(value, nn.Parameter) and not value.is_floating_point():
        raise CriterionError(
            f"'{tensor}' is stored as {str(value.dtype).removeprefix('torch.')} ({type(value).__name__}), expected "
            "a floating-point parameter or a layer of bitsandbytes. Load the model without quantisation to score it."
        )
    return value


def lora_factors(model: nn.Module, tensor: str, gradient_of: GradientOf = own_gradient) -> LoraFactors | None:
    """The active adapter on ``tensor`` with its gradients as they stand (zero where a factor has none).

    None where there is no adapter: on biases and norm weights always, and on convolutions, whose factors are
    no matrices.

    Raises:
        CriterionError: if several adapters are active on the tensor.
        ReshapeError: if the adapter is no plain LoRA on a linear map, an embedding or a bare parameter.
    """
    active = _active(model, tensor)
    if not active:
        return None
    if len(active) > 1:
        names = ", ".join(name for _, name in active)
        raise CriterionError(
            f"'{tensor}' has {len(active)} active adapters ({names}), expected one. "
            "Activate one of them, or merge the others."
        )
    layer, name = active[0]
    a, b = _matrices(layer, name)
    stack = getattr(layer, "num_experts", 1)
    return LoraFactors(
        a=_split_a(whole(a), stack),
        b=_split_b(whole(b), stack),
        grad_a=_split_a(_gradient(a, gradient_of), stack),
        grad_b=_split_b(_gradient(b, gradient_of), stack),
        scaling=float(layer.scaling[name]),
        transposed=_is_transposed(layer, name),
    )


def factor_parameters(model: nn.Module, tensor: str) -> Iterator[nn.Parameter]:
    """The parameters of the active adapters on ``tensor``."""
    for layer, name in _active(model, tensor):
        yield from _matrices(layer, name)


def _active(model: nn.Module, tensor: str) -> list[tuple[Any, str]]:
    if tensor.rpartition(".")[2] == "bias":
        return []
    return [
        (layer, name)
        for layer in adapter_layers(model, tensor)
        if not layer.disable_adapters
        for name in layer.active_adapters
        if name in layer.lora_A or name in layer.lora_embedding_A
    ]


def _matrices(layer: Any, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _is_transposed(layer: Any, name: str) -> bool:
    """Whether the base tensor is stored as (inputs, outputs), of which BA is the transpose."""
    if name in layer.lora_embedding_A:
        return True
    if getattr(layer, "num_experts", 1) > 1:
        return not layer._did_swap_in_out_features
    codes = packed_in(plain(layer))
    return bool(getattr(layer, "fan_in_fan_out", False)) or (codes is not None and codes.transposed)


def _gradient(factor: nn.Parameter, gradient_of: GradientOf) -> Tensor:
    found = gradient_of(factor)
    return zeros(factor) if found is None else found


def _split_a(factor: Tensor, stack: int) -> Tensor:
    """(stack·r, k) as PEFT keeps it for a stack of matrices, to (stack, r, k)."""
    return factor if stack == 1 else factor.reshape(stack, -1, factor.shape[-1])


def _split_b(factor: Tensor, stack: int) -> Tensor:
    """(d, r·stack) as PEFT keeps it for a stack of matrices, to (stack, d, r)."""
    return factor if stack == 1 else factor.reshape(factor.shape[0], -1, stack).permute(2, 0, 1)
