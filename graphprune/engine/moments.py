"""What an optimizer keeps of a parameter, cut as the parameter is cut; known by its form, whoever keeps it.

Three forms are understood:

* one number per element (moments), and numbers for the whole parameter (counters);
* two vectors that stand for a matrix of second moments (Adafactor and its kin), row and column;
* one code per element in blocks with a scale each (bitsandbytes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from graphprune.reshape.cut import cut_tensor

Dims = Mapping[int, torch.Tensor]
State = Mapping[str, Any]

#: Codes of bitsandbytes' optimizers that share a scale.
_BLOCK = 256
#: Subclasses keep their numbers in ways of their own.
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_CODES = re.compile(r"state(\d)")


def strange(state: State, shape: tuple[int, ...]) -> str | None:
    """The name of something in the state of a parameter of ``shape`` that is of none of these forms; else None."""
    return next((name for name in state if _form(name, state, shape) == "strange"), None)


def mixed(state: State, shape: tuple[int, ...]) -> bool:
    """Whether elements share statistics or scales: a cut then is what the optimizer would keep of what is left."""
    return any(_form(name, state, shape) in ("rows", "codes") for name in state)


def cut_state(state: State, shape: tuple[int, ...], dims: Dims) -> dict[str, Any]:
    """The state of a parameter of ``shape`` once only the indices in ``dims`` are left of it.

    Moments are sliced. Of factored second moments the matrix is cut that the two vectors stand for, and factored again,
    which loses nothing: any part of it is of rank one. Codes are decoded, sliced and encoded with the scales of the new
    blocks.
    """
    cut = dict(state)
    for name, value in state.items():
        form = _form(name, state, shape)
        if form == "elements":
            cut[name] = cut_tensor(value, dims)
        elif form == "rows":
            other = _columns_of(name)
            cut[name], cut[other] = _cut_factors(value, state[other], len(shape), dims)
        elif form == "codes":
            scales, code = _scales_of(name)
            cut[name], cut[scales] = _cut_codes(value, state[scales], state[code], dims)
    return cut


def _form(name: str, state: State, shape: tuple[int, ...]) -> str:
    value = state[name]
    if not isinstance(value, torch.Tensor):
        return "whole" if value is None or isinstance(value, (bool, int, float, str)) else "strange"
    if type(value) not in _PLAIN or getattr(value, "is_paged", False):
        return "strange"
    if _is_rows(name, state, shape):
        return "rows"
    if _is_codes(name, state, shape):
        return "codes"
    for first, found in (("row", _is_rows), ("state", _is_codes)):
        if any(first in key and name in _partners(key) and found(key, state, shape) for key in state):
            return "partner"
    if value.shape == shape and value.ndim and value.is_floating_point():
        return "elements"
    return "whole" if value.numel() == 1 else "strange"


def _partners(name: str) -> tuple[str, ...]:
    return _scales_of(name) if _CODES.fullmatch(name) else (_columns_of(name),)


def _columns_of(name: str) -> str:
    return name.replace("row", "col")


def _scales_of(name: str) -> tuple[str, str]:
    return name.replace("state", "absmax"), name.replace("state", "qmap")


def _is_rows(name: str, state: State, shape: tuple[int, ...]) -> bool:
    """Whether this is the first vector of a pair: per row; the other is per column. With the averaged axis or not."""
    columns = state.get(_columns_of(name))
    if "row" not in name or len(shape) < 2 or not isinstance(columns, torch.Tensor):
        return False
    found = tuple(state[name].shape), tuple(columns.shape)
    *outer, r, c = shape
    return found in (((*outer, r), (*outer, c)), ((*outer, r, 1), (*outer, 1, c)))


def _is_codes(name: str, state: State, shape: tuple[int, ...]) -> bool:
    scales, code = (state.get(key) for key in _scales_of(name))
    value = state[name]
    return (
        _CODES.fullmatch(name) is not None
        and value.dtype == torch.uint8
        and value.shape == shape
        and isinstance(scales, torch.Tensor)
        and isinstance(code, torch.Tensor)
        and scales.numel() == -(-value.numel() // _BLOCK)
    )


def _cut_factors(rows: torch.Tensor, columns: torch.Tensor, ndim: int, dims: Dims) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over what is left of the matrix ``rows × columns / mean(rows)``."""
    r, c = (rows, columns) if rows.ndim == ndim - 1 else (rows.squeeze(-1), columns.squeeze(-2))
    for dim in (d for d in dims if d < ndim - 2):
        r, c = r.index_select(dim, dims[dim].to(r.device)), c.index_select(dim, dims[dim].to(c.device))
    left_r = r.index_select(-1, dims[ndim - 2].to(r.device)) if ndim - 2 in dims else r
    left_c = c.index_select(-1, dims[ndim - 1].to(c.device)) if ndim - 1 in dims else c
    r, c = left_r * _share(left_c, c), left_c * _share(left_r, r)
    if rows.ndim == ndim:
        r, c = r.unsqueeze(-1), c.unsqueeze(-2)
    return r.contiguous(), c.contiguous()


def _share(left: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """By what the mean changes, 1 where there is nothing yet."""
    before = whole.mean(-1, keepdim=True)
    return torch.where(before > 0, left.mean(-1, keepdim=True) / before, 1.0)


def _cut_codes(
    codes: torch.Tensor, scales: torch.Tensor, code: torch.Tensor, dims: Dims
) -> tuple[torch.Tensor, torch.Tensor]:
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    values = dequantize_blockwise(codes.contiguous(), absmax=scales, code=code, blocksize=_BLOCK)
    made, state = quantize_blockwise(cut_tensor(values, dims), code=code, blocksize=_BLOCK)
    return made, state.absmax
