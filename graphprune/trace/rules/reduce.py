"""Reductions and normalisations: what they sum over decides whether removing equals masking."""

from __future__ import annotations

from graphprune.trace.axes import UNIT, Expr, atoms, fresh, unify
from graphprune.trace.record import Kind
from graphprune.trace.rules.pointwise import pointwise
from graphprune.trace.rules.table import Call, positive, rule

SUMS = {"sum", "nansum", "any", "all", "count_nonzero"}


@rule("sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "prod", "norm", "linalg_vector_norm", "any",
      "all", "logsumexp", "count_nonzero", "nansum")  # fmt: skip
def reduce_dims(call: Call) -> None:
    """Dimensions disappear (or shrink to one)."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    dim = call.get("dim")
    chosen = range(tensor.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    gone = {positive(d, tensor.ndim) for d in chosen}
    if info.kind is not Kind.CONSTANT:
        for d in gone:
            if call.name == "mean":
                call.tracer.averages.append(info.dims[d])
            if call.name == "mean" and info.squared is not None:
                call.tracer.norm_of(info, d)
            _flag(info.dims[d], _mark(call.name, info.squared is not None))
        if call.name == "logsumexp":  # the norm of a softmax
            for d in set(range(tensor.ndim)) - gone:
                _flag(info.dims[d], "softmax_batch")
    keep = bool(call.get("keepdim", False))
    dims = [UNIT if d in gone else e for d, e in enumerate(info.dims) if keep or d not in gone]
    for i in range(len(call.outputs)):
        call.put(dims, output=i, mean_square=info.squared is not None and call.name == "mean")


def _mark(name: str, squared: bool) -> str:
    if name in SUMS:
        return "summed"
    if name != "mean":
        return "averaged"
    return "mean_square" if squared else "normalised"


@rule("aminmax", "_aminmax")
def least_and_greatest(call: Call) -> None:
    """The smallest and the largest value, of all or along one dimension."""
    info = call.info(call.tensors[0])
    dim = call.get("dim")
    gone = range(len(info.dims)) if dim is None else [positive(dim, len(info.dims))]
    keep = bool(call.get("keepdim", False))
    for i in range(len(call.outputs)):
        call.put([UNIT if d in gone else e for d, e in enumerate(info.dims) if keep or d not in gone], output=i)


@rule("max", "min", "argmax", "argmin", "mode", "median", "kthvalue")
def extreme(call: Call) -> None:
    """The best position along a dimension, with its index."""
    tensor = call.tensors[0]
    if len(call.tensors) > 1:
        pointwise(call)
        return
    info, dim = call.info(tensor), call.get("dim")
    if dim is None:
        call.put([], tensor)
        return
    d = positive(dim, tensor.ndim)
    if info.kind is not Kind.CONSTANT:
        _flag(info.dims[d], "chosen")
    keep = bool(call.get("keepdim", False))
    dims = [UNIT if i == d else e for i, e in enumerate(info.dims) if keep or i != d]
    for i, output in enumerate(call.outputs):
        integer = not output.is_floating_point()
        call.put(dims, tensor, output=i, values=info.dims[d] if integer else None, selected=integer)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(call: Call) -> None:
    """Weights along one dimension; everything else in the tensor is computed side by side."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    d = positive(call["dim"], tensor.ndim)
    if info.kind is not Kind.CONSTANT:
        _flag(info.dims[d], "softmax")
        for i, expr in enumerate(info.dims):
            if i != d:
                _flag(expr, "softmax_batch")
    call.put(info.dims, tensor)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_layer_norm_backward")
def layer_norm(call: Call) -> None:
    """Normalises over the last dimensions; weight and bias lie along them."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    count = len(call["normalized_shape"])
    for expr in info.dims[-count:]:
        _flag(expr, "normalised" if count == 1 else "averaged")
    call.tracer.averages += [info.dims[-1]] if count == 1 else []
    for other in call.tensors[1:]:
        for a, b in zip(info.dims[-count:], call.info(other).dims, strict=True):
            unify(a, b)
    call.put(info.dims, tensor)
    for i, output in enumerate(call.outputs[1:], start=1):
        kept = [*info.dims[:-count], *([UNIT] * count)]
        call.put(kept if len(kept) == output.ndim else [fresh(n) for n in output.shape], output=i)


@rule("native_group_norm", "native_batch_norm")
def group_norm(call: Call) -> None:
    """Normalises groups of channels, so channels cannot go one by one."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    call.tracer.freeze(info.dims[1], f"normalised in groups by '{call.name}'")
    for other in call.tensors[1:]:
        unify(info.dims[1], call.info(other).dims[0])
    call.put(info.dims, tensor)
    for i, output in enumerate(call.outputs[1:], start=1):
        call.put([fresh(n) for n in output.shape], output=i)


def _flag(expr: Expr, flag: str) -> None:
    for atom in atoms(expr):
        atom.flags.add(flag)
