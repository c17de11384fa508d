"""Cutting the codes of quantised weights: 8-bit ones, whose scales belong to rows, and 4-bit ones, to blocks of a row.

Any part of an 8-bit weight is exact: its codes and scales are those of the whole. Of a 4-bit weight this is so for
whole rows and for whole blocks of columns, where rows are made of whole blocks. Other parts have to be coded anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from graphprune.graph import Axis
from graphprune.packed import Packed, block_scales, check_in_order
from graphprune.reshape.cut import cut_tensor

Dims = Mapping[int, torch.Tensor]


def uncuttable(codes: Packed, dims: Dims) -> str:
    """Why the codes of a quantised weight cannot be cut exactly to the given indices; empty where they can."""
    if codes.kind == "int8" or _blocks(codes, dims) is not None:
        return ""
    return (
        f"is quantised ({codes.kind}), and codes that share a scale by blocks of {_block(codes)} inputs cannot be cut "
        "exactly but by whole blocks"
    )


def scattered(codes: Packed, dim: int, axis: Axis) -> bool:
    """Whether some unit of an axis in dimension ``dim`` of a weight could not be cut out of its codes exactly."""
    if codes.kind == "int8":
        return False
    size, columns = _block(codes), codes.stored_shape[1]
    if columns % size:
        return True
    blocks = axis.unit_of().reshape(-1, size) if _stored(codes, dim) == 1 else torch.zeros(1, 1)
    return not bool((blocks == blocks[:, :1]).all())


def cut_codes(codes: Packed, dims: Dims) -> nn.Parameter:
    """The quantised weight that keeps the given indices of dimensions in the graph's layout; its layer forgets the old.

    Scales go along; doubly quantised ones are kept as they are decoded. The layer computes what the old one would with
    zeros in the columns of its input that go: bit by bit where :func:`uncuttable` says nothing, else to the error of
    coding its values a second time.
    """
    if codes.kind == "int8":
        return _cut_8bit(codes, dims)
    blocks = _blocks(codes, dims)
    if blocks is None:
        return encoded(codes, cut_tensor(codes.whole(), dims))
    rows, columns = blocks
    layer, state = codes.layer, _state(codes)
    check_in_order(state)
    shape = (codes.stored_shape[0], codes.stored_shape[1] // state.blocksize)
    stored: torch.Tensor = layer._parameters["weight"].data  # type: ignore[union-attr]
    values = stored.reshape(-1).view(torch.uint8).reshape(*shape, -1)
    scales = block_scales(state, 0, shape[0] * shape[1]).reshape(shape)
    index = {0: rows, 1: columns}
    values, scales = cut_tensor(values, index), cut_tensor(scales, index)
    made = values.reshape(-1).view(stored.dtype).reshape(-1, 1)
    return _parameter_4bit(codes, made, scales.reshape(-1), (len(rows), len(columns) * state.blocksize))


def encoded(codes: Packed, values: torch.Tensor) -> nn.Parameter:
    """The weight of a 4-bit layer for other values, of any shape in the graph's layout, coded as the old ones were."""
    from bitsandbytes.functional import quantize_4bit

    state, weight = _state(codes), codes.layer._parameters["weight"]
    assert weight is not None
    values = (values.t() if codes.transposed else values).to(weight.device, state.dtype).contiguous()
    made, new = quantize_4bit(
        values, blocksize=state.blocksize, quant_type=state.quant_type, quant_storage=weight.dtype
    )
    return _parameter_4bit(codes, made, new.absmax, tuple(values.shape))


def _parameter_4bit(codes: Packed, data: torch.Tensor, scales: torch.Tensor, shape: tuple[int, ...]) -> nn.Parameter:
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    old, layer = _state(codes), codes.layer
    state = QuantState(
        absmax=scales,
        shape=torch.Size(shape),
        code=old.code,
        blocksize=old.blocksize,
        quant_type=old.quant_type,
        dtype=old.dtype,
    )
    made: nn.Parameter = Params4bit(
        data,
        requires_grad=False,
        quant_state=state,
        blocksize=old.blocksize,
        compress_statistics=False,
        quant_type=old.quant_type,
        quant_storage=data.dtype,
        module=layer,
        bnb_quantized=True,
    )
    vars(layer)["quant_state"] = state
    return made


def _cut_8bit(codes: Packed, dims: Dims) -> nn.Parameter:
    from bitsandbytes.nn import Int8Params

    layer: Any = codes.layer
    values = layer.weight.data
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    for dim, kept in dims.items():
        index = kept.to(values.device)
        values = values.index_select(_stored(codes, dim), index)
        scales = scales.index_select(0, index) if _stored(codes, dim) == 0 else scales
    layer.state.reset_grads()  # the next forward moves the new ones there
    made: nn.Parameter = Int8Params(values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scales)
    return made


def _blocks(codes: Packed, dims: Dims) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The rows and the blocks of columns that are left of a 4-bit weight; None where they are not whole blocks."""
    (rows, columns), size = codes.stored_shape, _block(codes)
    kept = {_stored(codes, dim): index for dim, index in dims.items()}
    if columns % size:
        return None
    left = kept.get(1, torch.arange(columns))
    if len(left) % size:
        return None
    blocks = left.reshape(-1, size)
    if not torch.equal(blocks, blocks[:, :1] // size * size + torch.arange(size)):
        return None
    return kept.get(0, torch.arange(rows)), blocks[:, 0] // size


def _stored(codes: Packed, dim: int) -> int:
    return 1 - dim % 2 if codes.transposed else dim % 2


def _state(codes: Packed) -> Any:
    weight: Any = codes.layer._parameters["weight"]
    return weight.quant_state


def _block(codes: Packed) -> int:
    return int(_state(codes).blocksize)
