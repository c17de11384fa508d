"""Element-wise operations: dimensions that meet are the same axis."""

from __future__ import annotations

import torch

from graphprune.trace.axes import UNIT, Expr, fresh, length, unify
from graphprune.trace.record import Kind
from graphprune.trace.rules.table import POINTWISE, Call, rule

KEEPS_VALUES = frozenset(
    "clone _to_copy clamp clamp_min clamp_max masked_fill where copy_ lift_fresh detach alias".split()
)
"""Operations after which integers still index the same axis."""


def broadcast(call: Call, shape: torch.Size, tensors: list[torch.Tensor]) -> list[Expr]:
    """Unites the dimensions of ``tensors`` that are aligned by broadcasting to ``shape``."""
    dims: list[Expr] = [UNIT] * len(shape)
    for tensor in tensors:
        info = call.info(tensor)
        offset = len(shape) - len(info.dims)
        for d, expr in enumerate(info.dims):
            if length(expr) == 1:
                continue
            if dims[offset + d] == UNIT:
                dims[offset + d] = expr
            else:
                unify(dims[offset + d], expr)
    return [e if length(e) == n else fresh(n) for e, n in zip(dims, shape, strict=True)]


@rule(POINTWISE)
def pointwise(call: Call) -> None:
    """The rule for everything that carries ``torch.Tag.pointwise``."""
    tensors = call.tensors
    values = None
    integers = [t for t in tensors if not t.is_floating_point() and t.dtype != torch.bool]
    if call.name in KEEPS_VALUES:
        values = next((call.info(t).values for t in integers if call.info(t).values is not None), None)
    selected = any(call.info(t).selected for t in integers)
    _note_shift(call, tensors)
    for position, output in enumerate(call.outputs):
        dims = broadcast(call, output.shape, tensors)
        source = call.info(tensors[0]).source if call.name in ("_to_copy", "clone", "detach", "alias") else None
        call.put(
            dims, output=position, values=values, selected=selected, source=source, squared=_squares(call, tensors)
        )


def _squares(call: Call, tensors: list[torch.Tensor]) -> int | None:
    """The serial number of what is squared."""
    product = call.name == "mul" and len(tensors) == 2 and tensors[0] is tensors[1]
    exponent = call.get("exponent")
    power = call.name == "square" or (call.name == "pow" and isinstance(exponent, int | float) and exponent == 2)
    return call.info(tensors[0]).source if product or power else None


def _note_shift(call: Call, tensors: list[torch.Tensor]) -> None:
    """A weight to which a number is added (1 + scale) is scaled by way of the sum."""
    if call.name not in ("add", "sub", "rsub") or len(tensors) != 1:
        return
    number = call.get("other")
    plain = call.name == "add" and isinstance(number, int | float) and call.get("alpha", 1) == 1
    for name in call.info(tensors[0]).params:
        known = call.tracer.shifts.setdefault(name, float(number) if plain else None)
        if not plain or known != float(number):
            call.tracer.shifts[name] = None


@rule("clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "masked_fill", "contiguous",
      "where", "nan_to_num", "bernoulli", "native_dropout", "dropout", "floor_divide")  # fmt: skip
def same_shape(call: Call) -> None:
    """Operations that are element-wise without carrying the tag."""
    pointwise(call)


@rule("log_sigmoid_forward")
def log_sigmoid(call: Call) -> None:
    """Element-wise, beside a buffer for the backward pass."""
    for i, output in enumerate(call.outputs):
        same = output.shape == call.tensors[0].shape
        call.put(call.info(call.tensors[0]).dims if same else [fresh(n) for n in output.shape], output=i)


@rule("copy_")
def copy_in_place(call: Call) -> None:
    """Writing into (a view of) a tensor: axes unite, and the written storage now depends on the source."""
    target, source = call["self"], call["src"]
    records = call.tracer.records
    with call.tracer.passages.storing(target, records.get(target), records.get(source)):
        dims = broadcast(call, target.shape, [target, source])
        call.put(dims, target, source)


@rule(
    "masked_fill_",
    "fill_",
    "zero_",
    "add_",
    "mul_",
    "sub_",
    "div_",
    "clamp_",
    "exp_",
    "neg_",
    "relu_",
    "sigmoid_",
)
def in_place(call: Call) -> None:
    """In-place element-wise operations keep the axes of the tensor they change."""
    pointwise(call)


@rule("tril", "triu", "flip", "roll", "cumsum", "cumprod", "logcumsumexp")
def mixing(call: Call) -> None:
    """Shape-keeping operations that mix positions along axes: those axes must not lose units."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    if info.kind is not Kind.CONSTANT:
        dim = call.get("dim", call.get("dims"))
        chosen = range(tensor.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
        for d in chosen:
            call.tracer.freeze(info.dims[d], f"positions are mixed by '{call.name}'")
    call.put(info.dims, uniform=info.uniform and call.name in ("flip", "roll"))
