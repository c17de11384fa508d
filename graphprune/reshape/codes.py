"""Cutting 8-bit codes: exact, because a scale belongs to a whole row, whichever of its columns stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphprune.packed import Packed


def uncuttable(codes: Packed) -> str:
    """Why the codes of a quantised weight cannot be cut exactly; empty where they can."""
    if codes.kind == "int8":
        return ""
    return f"is quantised ({codes.kind}), and codes that share a scale by blocks of a row cannot be cut exactly"


def cut_codes(codes: Packed, dims: dict[int, torch.Tensor]) -> nn.Parameter:
    """The 8-bit weight that keeps the given indices of dimensions in the graph's layout; its layer forgets the old.

    Rows take their scales along. The layer computes what the old one would with zeros in the columns of its input that
    go, bit by bit.
    """
    from bitsandbytes.nn import Int8Params

    layer: Any = codes.layer
    values = layer.weight.data
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    for dim, kept in dims.items():
        stored = 1 - dim if codes.transposed else dim
        index = kept.to(values.device)
        values = values.index_select(stored, index)
        scales = scales.index_select(0, index) if stored == 0 else scales
    layer.state.reset_grads()  # the next forward moves the new ones there
    made: nn.Parameter = Int8Params(values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scales)
    return made
