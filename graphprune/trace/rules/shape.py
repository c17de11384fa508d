"""Operations that only rearrange: views, transpositions, cuts and concatenations."""

from __future__ import annotations

import torch

from graphprune.trace.axes import (
    UNIT,
    Concat,
    Expr,
    atoms,
    concat,
    cut,
    fresh,
    length,
    matters,
    narrow,
    regroup,
    resolve,
    strided,
    unify,
)
from graphprune.trace.record import Info, Kind
from graphprune.trace.rules.table import Call, positive, rule


@rule(
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "view_as",
    "flatten",
    "unflatten",
    "_reshape_copy",
    "view_copy",
)
def view(call: Call) -> None:
    """Positions keep their order under new sizes."""
    info = call.info(call.tensors[0])
    (output,) = call.outputs
    if output.dtype != call.tensors[0].dtype:
        call.put([fresh(n) for n in output.shape])
        return
    dims = regroup(info.dims, output.shape)
    same_last = bool(info.dims) and bool(dims) and length(info.dims[-1]) == length(dims[-1])
    call.put(dims, values=info.values, selected=info.selected, source=info.source if same_last else None)


@rule("view_as_complex", "view_as_complex_copy")
def as_complex(call: Call) -> None:
    """The last dimension, of real and imaginary part, disappears."""
    info = call.info(call.tensors[0])
    call.tracer.freeze(info.dims[-1], "real and imaginary parts of one number")
    call.put(info.dims[:-1])


@rule("view_as_real", "view_as_real_copy", "_conj", "_conj_physical", "resolve_conj")
def as_real(call: Call) -> None:
    """A last dimension of two appears: real and imaginary part."""
    info = call.info(call.tensors[0])
    call.put([*info.dims, *([fresh(2)] if call.name.startswith("view_as_real") else [])])


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "permute_copy", "transpose_copy", "t_copy")
def permute(call: Call) -> None:
    """Dimensions change places."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    n = tensor.ndim
    order = list(range(n))
    if call.name.startswith("permute"):
        order = [positive(d, n) for d in call["dims"]]
    elif n > 1:
        a, b = (0, 1) if call.name.startswith("t") and "dim0" not in call.arguments else (call["dim0"], call["dim1"])
        a, b = positive(a, n), positive(b, n)
        order[a], order[b] = order[b], order[a]
    call.put([info.dims[d] for d in order], values=info.values, selected=info.selected)


@rule("unsqueeze", "squeeze", "squeeze_copy", "unsqueeze_copy")
def squeeze(call: Call) -> None:
    """Dimensions of length one appear and disappear."""
    info = call.info(call.tensors[0])
    real = [e for e in info.dims if length(e) != 1]
    dims = [UNIT if n == 1 else real.pop(0) for n in call.outputs[0].shape]
    last_kept = bool(dims) and bool(info.dims) and length(dims[-1]) == length(info.dims[-1])
    call.put(dims, values=info.values, selected=info.selected, source=info.source if last_kept else None)


@rule("expand", "expand_as", "broadcast_to", "expand_copy")
def expand(call: Call) -> None:
    """A dimension of length one is repeated; repeating an activation makes a repeat axis (grouped queries)."""
    info = call.info(call.tensors[0])
    shape = call.outputs[0].shape
    padded = [UNIT] * (len(shape) - len(info.dims)) + list(info.dims)
    flags = ("repeat",) if info.kind is Kind.ACTIVATION else ()
    dims = [e if length(e) == n else fresh(n, *flags) for e, n in zip(padded, shape, strict=True)]
    call.put(dims, call.tensors[0], values=info.values, selected=info.selected)


@rule("repeat")
def repeat(call: Call) -> None:
    """Tiling: the repetitions are an outer axis of each dimension."""
    info = call.info(call.tensors[0])
    repeats = call["repeats"]
    padded = [UNIT] * (len(repeats) - len(info.dims)) + list(info.dims)
    flags = ("repeat",) if info.kind is Kind.ACTIVATION else ()
    call.put([fresh(r, *flags) + e for r, e in zip(repeats, padded, strict=True)], values=info.values)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> None:
    """Each position repeated in place: the repetitions are an inner axis."""
    tensor = call.tensors[0]
    info, times = call.info(tensor), call.get("repeats")
    if not isinstance(times, int) or call.get("dim") is None:
        call.tracer.unknown(call)
        return
    d = positive(call["dim"], tensor.ndim)
    flags = ("repeat",) if info.kind is Kind.ACTIVATION else ()
    dims = list(info.dims)
    dims[d] = dims[d] + fresh(times, *flags)
    call.put(dims, values=info.values, selected=info.selected)


@rule("cat", "concatenate", "concat")
def cat(call: Call) -> None:
    """Pieces laid end to end; the other dimensions are the same axes."""
    tensors = [t for t in call["tensors"] if t.numel() or t.ndim > 1]
    infos = [call.info(t) for t in tensors]
    d = positive(call.get("dim", 0), tensors[0].ndim)
    beside = [i for i in range(len(infos[0].dims)) if i != d]
    followed = [info for info in infos if info.kind is Kind.ACTIVATION]
    joined = [i for i in beside if len({_repeats(info, i) for info in followed}) > 1]
    for other in infos[1:]:
        for i in beside:
            unify(infos[0].dims[i], other.dims[i])
    for atom in (a for i in joined for a in atoms(infos[0].dims[i])):
        atom.flags.add("joined")
    dims = list(infos[0].dims)
    dims[d] = concat([i.dims[d] for i in infos])
    values = infos[0].values
    for other in infos[1:]:
        if values is not None and other.values is not None and length(values) == length(other.values):
            unify(values, other.values)
        else:
            values = None
    call.put(dims, *tensors, values=values, selected=all(i.selected for i in infos))


def _repeats(info: Info, dim: int) -> bool:
    """Whether a dimension of an activation is mere repetition; next to one that is not, it repeats nothing."""
    return any("repeat" in a.flags for a in atoms(info.dims[dim]))


@rule("stack")
def stack(call: Call) -> None:
    """Tensors of one shape along a new dimension, which has one unit per tensor."""
    infos = [call.info(t) for t in call["tensors"]]
    for other in infos[1:]:
        for a, b in zip(infos[0].dims, other.dims, strict=True):
            unify(a, b)
    d = positive(call.get("dim", 0), len(infos[0].dims) + 1)
    slots: Expr = (Concat(tuple(UNIT for _ in infos)),) if len(infos) > 1 else UNIT
    call.put([*infos[0].dims[:d], slots, *infos[0].dims[d:]])


@rule("slice", "slice_copy")
def take_slice(call: Call) -> None:
    """A range of positions, possibly with a step."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    d = positive(call.get("dim", 0), tensor.ndim)
    size = tensor.shape[d]
    start, stop, step = slice(call.get("start"), call.get("end"), call.get("step", 1)).indices(size)
    dims = list(info.dims)
    if step == 1:
        dims[d] = dims[d] if (start, stop) == (0, size) else narrow(dims[d], start, max(stop, start))
    elif not matters(dims[d]):
        dims[d] = fresh(call.outputs[0].shape[d])
    else:
        dims[d] = strided(narrow(dims[d], start - start % step, size), start % step, step)
        dims[d] = narrow(dims[d], 0, call.outputs[0].shape[d])
    call.put(dims, values=info.values, selected=info.selected)


@rule("narrow")
def take_narrow(call: Call) -> None:
    """``narrow``: a range given by start and length."""
    info = call.info(call.tensors[0])
    d = positive(call["dim"], len(info.dims))
    dims = list(info.dims)
    dims[d] = narrow(dims[d], call["start"], call["start"] + call["length"])
    call.put(dims)


@rule("select", "select_copy")
def select(call: Call) -> None:
    """One position of a dimension, which disappears; the axis is cut around it."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    d = positive(call["dim"], tensor.ndim)
    index = call["index"] % tensor.shape[d]
    if info.kind is not Kind.CONSTANT:
        narrow(info.dims[d], index, index + 1)
    call.put([e for i, e in enumerate(info.dims) if i != d], values=info.values, selected=info.selected)


@rule("split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes",
      "tensor_split", "split_copy", "split_with_sizes_copy", "unbind_copy")  # fmt: skip
def split_dim(call: Call) -> None:
    """A dimension is divided among the outputs."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    d = positive(call.get("dim", 0), tensor.ndim)
    rest = resolve(info.dims[d])
    gone = call.name.startswith("unbind")
    for i, output in enumerate(call.outputs):
        piece, rest = cut(rest, 1 if gone else output.shape[d])
        dims = [*info.dims[:d], *([] if gone else [piece]), *info.dims[d + 1 :]]
        call.put(dims, output=i, values=info.values, selected=info.selected)


@rule("constant_pad_nd", "pad", "constant_pad")
def pad(call: Call) -> None:
    """Padding with zeros adds pieces that belong to nothing; a negative pad cuts."""
    tensor = call.tensors[0]
    info = call.info(tensor)
    dims = list(info.dims)
    amounts = list(call["pad"])
    for k in range(len(amounts) // 2):
        d = tensor.ndim - 1 - k
        before, after = amounts[2 * k], amounts[2 * k + 1]
        size = length(dims[d])
        kept = narrow(dims[d], max(-before, 0), size - max(-after, 0)) if min(before, after) < 0 else dims[d]
        around = [fresh(max(before, 0)) if before > 0 else None, kept, fresh(after) if after > 0 else None]
        dims[d] = concat([e for e in around if e is not None])
    call.put(dims)


@rule("as_strided", "unfold", "diagonal", "im2col")
def strided_view(call: Call) -> None:
    """Overlapping windows: the windowed axes cannot lose units unless nothing but constants are involved."""
    tensor: torch.Tensor = call.tensors[0]
    info = call.info(tensor)
    if info.kind is Kind.CONSTANT or tuple(tensor.shape) == tuple(call.outputs[0].shape):
        dims = info.dims if tuple(tensor.shape) == tuple(call.outputs[0].shape) else None
        call.put(dims if dims is not None else [fresh(n) for n in call.outputs[0].shape])
        return
    if call.name != "unfold":
        call.tracer.unknown(call)
        return
    d = positive(call["dimension"], tensor.ndim)
    call.tracer.freeze(info.dims[d], "read through sliding windows")
    call.put([*info.dims[:d], fresh(call.outputs[0].shape[d]), *info.dims[d + 1 :], fresh(call["size"])])
