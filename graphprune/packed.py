"""Weights that bitsandbytes keeps as codes: the shape they stand for, and their values, a few rows at a time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graphprune.errors import GraphPruneError
from graphprune.names import resolve_owner

#: Rows of a transposed 4-bit weight are gathered from pieces of at least this many elements.
_SMALLEST_PIECE = 2**16


@dataclass(frozen=True, eq=False)
class Packed:
    """The weight of one layer that bitsandbytes has quantised to 8 or 4 bits.

    Attributes:
        layer: the quantised layer, without wrappers.
        transposed: whether it took the place of a ``Conv1D``, whose weight is (inputs, outputs). The graph speaks
            of that layout; bitsandbytes keeps (outputs, inputs).
    """

    layer: nn.Module
    transposed: bool

    @property
    def shape(self) -> torch.Size:
        """The shape from before quantisation, as the graph knows it."""
        rows, columns = self.stored_shape
        return torch.Size((columns, rows) if self.transposed else (rows, columns))

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(outputs, inputs), whatever the layout of the graph."""
        return _stored_shape(self.layer)

    @property
    def kind(self) -> str:
        """``int8``, ``nf4`` or ``fp4``."""
        weight: Any = self.layer._parameters["weight"]
        return "int8" if _is_int8(weight) else str(weight.quant_state.quant_type)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop`` of the dequantised weight, bit by bit as bitsandbytes dequantises the whole.

        8-bit weights come in float32, 4-bit ones in the dtype from before quantisation. Beside the result there are
        a few temporary tensors of its size, never the whole weight.
        """
        start, stop = max(start, 0), min(stop, self.shape[0])
        if _is_int8(self.layer._parameters["weight"]):
            return _int8(self.layer, start, stop, self.transposed)
        return _columns_4bit(self.layer, start, stop) if self.transposed else _rows_4bit(self.layer, start, stop)

    def whole(self) -> Tensor:
        """All of the dequantised weight."""
        return self.rows(0, self.shape[0])


def packed(model: nn.Module, tensor: str) -> Packed | None:
    """What the graph's tensor ``tensor`` is packed into; None where it is an ordinary parameter or buffer.

    Raises:
        ReshapeError: if there is no such tensor.
    """
    return packed_in(*resolve_owner(model, tensor))


def packed_in(layer: nn.Module, leaf: str = "weight") -> Packed | None:
    """The same for attribute ``leaf`` of a layer without wrappers."""
    bitsandbytes = sys.modules.get("bitsandbytes")  # nothing can be packed by a package that was not imported
    weight: Any = layer._parameters.get(leaf)
    if bitsandbytes is None or leaf != "weight" or weight is None:
        return None
    eight = isinstance(weight, bitsandbytes.nn.Int8Params) and weight.dtype == torch.int8
    # The codes of 4-bit weights may be stored under the name of any dtype.
    if not (eight or (isinstance(weight, bitsandbytes.nn.Params4bit) and weight.quant_state is not None)):
        return None
    return Packed(layer, transposed=getattr(layer, "source_cls", None) is Conv1D)


def packed_kinds(model: nn.Module) -> tuple[str, ...]:
    """How weights of ``model`` are quantised by bitsandbytes: ``int8``, ``nf4``, ``fp4``; empty for none."""
    found = (packed_in(module) for module in model.modules())
    return tuple(sorted({p.kind for p in found if p is not None}))


@torch.no_grad()
def keep_trainable(model: nn.Module) -> None:
    """Keeps 4-bit layers on the CPU in the form in which gradients flow through them.

    On some CPUs bitsandbytes repacks a 4-bit layer for good when it first runs in evaluation mode: block scales are
    rounded to bfloat16, and later training runs through a product without a gradient, so that every adapter below it
    learns nothing, in silence. Layers that were repacked already are put back, with the rounded scales.
    """
    for module in model.modules():
        found = packed_in(module)
        if found is None or found.kind == "int8":
            continue
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
        state: Any = module._parameters["weight"].quant_state  # type: ignore[union-attr]
        if getattr(state, "packing_format_for_cpu", False):
            module.state_dict()  # bitsandbytes puts its codes back in order when they are saved
            if not state.nested:  # the block scales it leaves in bfloat16, (blocks of a row, rows)
                state.absmax = state.absmax.T.reshape(-1).float()


def check_in_order(state: Any) -> None:
    """Refuses 4-bit codes whose blocks are not one after another.

    Raises:
        GraphPruneError: bitsandbytes has repacked the layer.
    """
    if getattr(state, "packing_format_for_cpu", False):
        raise GraphPruneError(
            "a 4-bit layer was repacked by bitsandbytes for inference on this CPU, so its weights cannot be read in "
            "parts. Call graphprune.packed.keep_trainable(model) first."
        )


def _stored_shape(layer: nn.Module) -> tuple[int, int]:
    weight: Any = layer._parameters["weight"]
    rows, columns = weight.shape if _is_int8(weight) else weight.quant_state.shape
    return int(rows), int(columns)


def _is_int8(weight: Any) -> bool:
    return not hasattr(weight, "quant_state")


def _int8(layer: Any, start: int, stop: int, transposed: bool) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    # The first forward moves codes and scales from the weight to the layer's state.
    holder = layer.weight if layer.weight.SCB is not None else layer.state
    codes, scales = layer.weight.data, holder.SCB
    if transposed:
        value: Tensor = int8_vectorwise_dequant(codes[:, start:stop], scales).t()
    else:
        value = int8_vectorwise_dequant(codes[start:stop], scales[start:stop])
    return value


def _rows_4bit(layer: nn.Module, start: int, stop: int) -> Tensor:
    """Whole quantisation blocks around the rows are dequantised, and what does not belong to them is cut off."""
    columns = _stored_shape(layer)[1]
    first, last = start * columns, stop * columns
    state: Any = layer._parameters["weight"].quant_state  # type: ignore[union-attr]
    offset = first // state.blocksize * state.blocksize
    return _blocks_4bit(layer, first, last)[first - offset : last - offset].reshape(-1, columns)


def _columns_4bit(layer: nn.Module, start: int, stop: int) -> Tensor:
    """Columns of the stored matrix as rows: they lie apart, so the matrix is gone through in pieces."""
    rows, columns = _stored_shape(layer)
    step = max(1, max((stop - start) * rows, _SMALLEST_PIECE) // columns)
    pieces = [_rows_4bit(layer, at, min(at + step, rows))[:, start:stop].t() for at in range(0, rows, step)]
    return torch.cat(pieces, dim=1)


def _blocks_4bit(layer: nn.Module, first: int, last: int) -> Tensor:
    """The values of all quantisation blocks that hold elements ``first:last`` of the flat weight, flat."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    weight: Any = layer._parameters["weight"]
    state = weight.quant_state
    check_in_order(state)
    size = state.blocksize
    low, high = first // size, -(-last // size)
    count = min(high * size, state.shape.numel()) - low * size
    codes = weight.data.reshape(-1).view(torch.uint8)[low * size // 2 : low * size // 2 + -(-count // 2)]
    part = QuantState(
        absmax=block_scales(state, low, high),
        shape=torch.Size((1, count)),
        dtype=state.dtype,
        blocksize=size,
        quant_type=state.quant_type,
    )
    value: Tensor = dequantize_4bit(codes.reshape(-1, 1), part)
    return value.reshape(-1)


def block_scales(state: Any, low: int, high: int) -> Tensor:
    """The scales of blocks ``low:high`` of 4-bit codes, in float32; doubly quantised ones are blocks of codes."""
    from bitsandbytes.functional import QuantState, dequantize_blockwise

    absmax: Tensor = state.absmax
    if not state.nested:
        return absmax[low:high]
    size = state.state2.blocksize
    outer, end = low // size, -(-high // size)
    part = QuantState(
        absmax=state.state2.absmax[outer:end], code=state.state2.code, blocksize=size, dtype=state.state2.dtype
    )
    value: Tensor = dequantize_blockwise(absmax[outer * size : high], part)
    offset: Tensor = state.offset
    return value[low - outer * size :].float() + offset
