"""Tensors made from nothing: constants. Those whose elements are all alike may be cut anywhere."""

from __future__ import annotations

from graphprune.trace.axes import fresh
from graphprune.trace.rules.table import Call, rule


@rule("empty", "empty_strided", "zeros", "ones", "full", "scalar_tensor", "new_empty", "new_zeros", "new_ones",
      "new_full", "new_empty_strided")  # fmt: skip
def alike(call: Call) -> None:
    """All elements are the same."""
    for output in call.outputs:
        call.tracer.put(output, tuple(fresh(n) for n in output.shape), uniform=True)


@rule("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
def alike_shape(call: Call) -> None:
    """All elements are the same, in the shape of another tensor: its axes."""
    call.tracer.put(call.outputs[0], call.info(call.tensors[0]).dims, uniform=True)


@rule("arange", "linspace", "eye", "randn", "rand", "randint", "randperm", "tril_indices", "logspace")
def counted(call: Call) -> None:
    """Elements differ by position."""
    output = call.outputs[0]
    dims = tuple(fresh(n) for n in output.shape)
    for expr in dims:
        call.tracer.values_differ(expr)
    call.tracer.put(output, dims)
