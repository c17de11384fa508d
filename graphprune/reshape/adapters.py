"""Low-rank adapters beside a tensor: which of their dimensions follow when the tensor is cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphprune.errors import ReshapeError
from graphprune.names import bare, inside, outer_layer, plain, resolve_module, resolve_owner
from graphprune.packed import packed_in


@dataclass(frozen=True, eq=False)
class Slot:
    """A place that holds a tensor: attribute ``leaf`` of ``module``."""

    module: nn.Module
    leaf: str

    @property
    def tensor(self) -> torch.Tensor:
        """The parameter or buffer in this place."""
        value: torch.Tensor | None = self.module._parameters.get(self.leaf)
        value = value if value is not None else self.module._buffers.get(self.leaf)
        assert value is not None, f"{type(self.module).__name__} has no tensor '{self.leaf}'"
        return value

    def put(self, value: torch.Tensor) -> None:
        """Places ``value`` where the old tensor was; a parameter stays a parameter, a buffer a buffer."""
        store: dict[str, Any] = (
            self.module._parameters if self.leaf in self.module._parameters else self.module._buffers
        )
        store[self.leaf] = value


@dataclass(frozen=True, eq=False)
class AdapterSlot:
    """A dimension of an adapter's tensor: ``outer × axis × inner``, ``axis`` as in the base tensor."""

    slot: Slot
    dim: int
    outer: int = 1
    inner: int = 1

    @property
    def repeat(self) -> int:
        """How many indices of this dimension belong to one index of the axis."""
        return self.outer * self.inner

    def spread(self, kept: torch.Tensor, length: int) -> torch.Tensor:
        """The kept indices of this dimension for the kept indices of an axis of ``length``."""
        outer = torch.arange(self.outer)[:, None, None] * (length * self.inner)
        return (outer + kept[None, :, None] * self.inner + torch.arange(self.inner)).reshape(-1)


def find_slot(model: nn.Module, tensor: str) -> Slot:
    """Where the tensor that the graph calls ``tensor`` lives.

    Raises:
        ReshapeError: if there is no such parameter or buffer.
    """
    return Slot(*resolve_owner(model, tensor))


def adapter_layers(model: nn.Module, tensor: str) -> Iterator[Any]:
    """The LoRA layers that adapt ``tensor``, outermost first.

    Raises:
        ReshapeError: for an adapter that is no plain LoRA, because how to cut it is unknown.
    """
    peft = sys.modules.get("peft")  # an adapter can only be there if the package has been imported
    if peft is None:
        return
    path, _, leaf = tensor.rpartition(".")
    layer: Any = resolve_module(model, path)
    while layer is not None:
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            name = getattr(layer, "parameter_name", "weight")
            if leaf == name:
                _check_plain(layer, tensor, peft)
                yield layer
            elif leaf == "bias" and any(getattr(layer, "lora_bias", {}).values()):
                yield layer
        layer = inside(layer)


def peft_model(model: nn.Module) -> Any:
    """The model in PEFT's own wrapper, below those of compilers and of data parallelism; None where there is none."""
    peft = sys.modules.get("peft")
    while peft is not None and not isinstance(model, peft.PeftModel):
        inner = outer_layer(model)
        if inner is None:
            return None
        model = inner
    return None if peft is None else model


def peft_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every layer of PEFT in the model, with the graph's path of what it adapts; outer layers first."""
    peft = sys.modules.get("peft")
    if peft is None:
        return
    for path, module in bare(model).named_modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            yield ".".join(part for part in path.split(".") if part != "base_layer"), module


@contextmanager
def without_deltas(model: nn.Module) -> Iterator[None]:
    """The model computes with its base tensors alone: those that :func:`graphprune.names.resolve_tensor` finds.

    Of a module that PEFT trains as a copy this is the copy, and of an adapter that is merged the merged weight.
    """
    known = [(layer, layer._disable_adapters) for _, layer in peft_layers(model) if not layer.merged]
    for layer, _ in known:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in known:
            layer._disable_adapters = disabled


def merge_problem(model: nn.Module) -> str:
    """Why the weights would be other ones than the model computes with, if its adapters were merged; else empty."""
    places: dict[int, list[str]] = {}
    for name, parameter in bare(model).named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for path, layer in peft_layers(model):
        base = getattr(plain(layer), getattr(layer, "parameter_name", "weight"), None)
        held = places.get(id(base), [])
        if len(held) > 1 and layer.active_adapters and _adapters(layer):
            names = sorted(name.replace(".base_layer", "") for name in held)
            return f"'{path}' carries an adapter and shares its weight: merged, it would change {' and '.join(names)}."
    return ""


def adapter_slots(model: nn.Module, tensor: str, dim: int) -> list[AdapterSlot]:
    """The dimensions of adapter tensors that follow dimension ``dim`` of ``tensor``, if it has adapters."""
    ndim = find_slot(model, tensor).tensor.ndim
    slots: list[AdapterSlot] = []
    for layer in adapter_layers(model, tensor):
        for adapter in _adapters(layer):
            slots.extend(_followers(layer, adapter, tensor.rpartition(".")[2], dim % ndim, ndim))
    return slots


def update_features(layer: Any, tensor: str, dim: int, kept: int, ndim: int) -> None:
    """Sets the sizes that a LoRA layer stores, after ``dim`` of its base tensor was cut to ``kept``."""
    if tensor.rpartition(".")[2] == "bias":
        return
    side = _side(layer, dim, ndim)
    if side == "stack":
        layer.num_experts = kept
        return
    setattr(layer, "in_features" if side == "in" else "out_features", kept)
    for adapter in getattr(layer, "lora_A", {}):
        factor = layer.lora_A[adapter] if side == "in" else layer.lora_B[adapter]
        setattr(factor, "in_features" if side == "in" else "out_features", kept)


def _side(layer: Any, dim: int, ndim: int) -> str:
    """Which side of the low-rank product a dimension of the base tensor is: ``in``, ``out`` or ``stack``."""
    if ndim == 3:
        if dim == 0:
            return "stack"
        # PEFT keeps (stack, out, in) after swapping, and (stack, in, out) without.
        rows_are_out = bool(getattr(layer, "_did_swap_in_out_features", False))
        return "out" if (dim == 1) == rows_are_out else "in"
    transposed = bool(getattr(layer, "fan_in_fan_out", False)) or "lora_embedding_A" in _filled(layer)
    weight = packed_in(plain(layer))  # on a quantised layer PEFT knows nothing of the layout from before
    transposed = transposed or (weight is not None and weight.transposed)
    return "out" if (dim == 0) != transposed else "in"


def _followers(layer: Any, adapter: str, leaf: str, dim: int, ndim: int) -> Iterator[AdapterSlot]:
    if "lora_embedding_A" in _filled(layer):  # A is (rank, rows), B is (columns, rank)
        if dim == 0:
            yield AdapterSlot(Slot(layer.lora_embedding_A, adapter), 1)
        else:
            yield AdapterSlot(Slot(layer.lora_embedding_B, adapter), 0)
        return
    factor_a, factor_b = layer.lora_A[adapter], layer.lora_B[adapter]
    if leaf == "bias":
        if factor_b.bias is not None:
            yield AdapterSlot(Slot(factor_b, "bias"), 0)
        return
    side = _side(layer, dim, ndim)
    if side == "in":
        yield AdapterSlot(Slot(factor_a, "weight"), 1)
    elif side == "out":
        yield AdapterSlot(Slot(factor_b, "weight"), 0)
        if factor_b.bias is not None and getattr(layer.get_base_layer(), "bias", None) is None:
            yield AdapterSlot(Slot(factor_b, "bias"), 0)
    else:  # a stack of matrices: rows of A are (stack, rank), columns of B are (rank, stack)
        rank = layer.r[adapter]
        yield AdapterSlot(Slot(factor_a, "weight"), 0, inner=rank)
        yield AdapterSlot(Slot(factor_b, "weight"), 1, outer=rank)


def _filled(layer: Any) -> set[str]:
    return {name for name in ("lora_A", "lora_embedding_A") if len(getattr(layer, name, ()))}


def _adapters(layer: Any) -> list[str]:
    return [name for store in sorted(_filled(layer)) for name in getattr(layer, store)]


def _check_plain(layer: Any, tensor: str, peft: Any) -> None:
    lora = isinstance(layer, peft.tuners.lora.LoraLayer)
    variants = [str(v) for v in getattr(layer, "lora_variant", {}).values()]
    if not lora or variants or isinstance(layer.get_base_layer(), nn.modules.conv._ConvNd):
        raise ReshapeError(
            f"'{tensor}' carries an adapter of type {' '.join([type(layer).__name__, *variants])}; only "
            "plain LoRA on linear maps, embeddings and bare parameters can be masked or cut. "
            "Merge the adapter first (merge_and_unload)."
        )
