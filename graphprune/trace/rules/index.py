"""Look-ups, top-k and scatter: integer tensors carry the axis that their values index."""

from __future__ import annotations

from typing import Any

import torch

from graphprune.trace.axes import UNIT, Expr, atoms, concat, fresh, length, matters, narrow, unify
from graphprune.trace.record import Info, Kind
from graphprune.trace.rules.pointwise import broadcast
from graphprune.trace.rules.table import Call, positive, rule


def link(call: Call, index: torch.Tensor, axis: Expr, table: Kind = Kind.ACTIVATION, *, deep: bool = False) -> None:
    """The values of ``index`` are positions of ``axis``.

    ``table`` is the kind of the tensor that is read there; ``deep`` says that it is a stack of matrices.
    """
    info = call.info(index)
    if info.values is not None:
        _aligned(info.values, axis)
    elif info.kind is Kind.CONSTANT:
        call.tracer.remember_values(index, axis)
    marks = {"routed" if info.selected else "lookup"}
    if table is Kind.WEIGHT and info.selected:
        marks.add("expert_weights")
    elif table is Kind.WEIGHT and info.kind is Kind.WEIGHT and deep:
        marks = {"assigned", "expert_weights"}  # by a table in the checkpoint, token by token
    if info.selected and info.values is None:
        marks.add("computed")
    for atom in atoms(axis):
        atom.flags.update(marks)


def _aligned(values: Expr, axis: Expr) -> None:
    """Values that count along one axis and point into another mean the same positions, as far as both go."""
    common = min(length(values), length(axis))
    unify(narrow(values, 0, common), narrow(axis, 0, common))


def constant_values(index: torch.Tensor) -> list[int] | None:
    """The values of a fake tensor that was made from Python numbers, if it still knows them."""
    constant: Any = getattr(index, "constant", None)
    if constant is None or constant.dtype == torch.bool:
        return None
    return [int(v) for v in constant.reshape(-1).tolist()]


@rule("embedding")
def embedding(call: Call) -> None:
    """Rows of a table: the result is an activation."""
    table, ids = call["weight"], call["indices"]
    info = call.info(table)
    link(call, ids, info.dims[0])
    call.tracer.looked_up |= info.params
    call.put([*call.info(ids).dims, *info.dims[1:]], kind=Kind.ACTIVATION, params=frozenset())


@rule("index", "_unsafe_index")
def index(call: Call) -> None:
    """Advanced indexing ``x[:, i, j]``; adjacent indices broadcast together."""
    tensor = call["self"]
    info = call.info(tensor)
    picks = list(call["indices"]) + [None] * (tensor.ndim - len(call["indices"]))
    used = [(d, i) for d, i in enumerate(picks) if i is not None]
    if any(i.dtype == torch.bool for _, i in used):
        _masked(call, info, used)
        return
    picked = _picked(info, used)
    if picked is None:
        shape = torch.broadcast_shapes(*(i.shape for _, i in used))  # type: ignore[no-untyped-call]
        picked = broadcast(call, shape, [i for _, i in used])
        for d, i in used:
            if length(info.dims[d]) > 1:
                link(call, i, info.dims[d], info.kind, deep=tensor.ndim > 2)
    places = [d for d, _ in used]
    together = places == list(range(places[0], places[0] + len(places)))
    rest = [e for d, e in enumerate(info.dims) if picks[d] is None]
    at = places[0] if together else 0
    call.put([*rest[:at], *picked, *rest[at:]], tensor, values=info.values, params=info.params)


def _masked(call: Call, info: Info, used: list[tuple[int, torch.Tensor]]) -> None:
    """A mask picks places along the dimensions that it covers, which become one."""
    if len(used) != 1:
        call.tracer.unknown(call)
        return
    ((d, mask),) = used
    for expr in info.dims[d : d + mask.ndim]:
        if matters(expr) and info.kind is not Kind.CONSTANT:
            call.tracer.freeze(expr, "places along it are picked by a mask")
    call.put([*info.dims[:d], fresh(call.outputs[0].shape[d]), *info.dims[d + mask.ndim :]], params=info.params)


def _picked(info: Info, used: list[tuple[int, torch.Tensor]]) -> list[Expr] | None:
    """A list of Python numbers on one dimension is a handful of slices."""
    if len(used) != 1:
        return None
    d, positions = used[0]
    numbers = constant_values(positions)
    if numbers is None or positions.ndim != 1 or info.kind is Kind.CONSTANT:
        return None
    size = length(info.dims[d])
    return [concat([narrow(info.dims[d], n % size, n % size + 1) for n in numbers]) if len(numbers) > 1
            else narrow(info.dims[d], numbers[0] % size, numbers[0] % size + 1)]  # fmt: skip


@rule("index_select")
def index_select(call: Call) -> None:
    """One dimension indexed by a vector."""
    tensor, ids = call["self"], call["index"]
    info = call.info(tensor)
    d = positive(call["dim"], tensor.ndim)
    link(call, ids, info.dims[d], info.kind)
    dims = list(info.dims)
    dims[d] = call.info(ids).dims[0] if ids.ndim else UNIT
    call.put(dims, tensor, values=info.values, params=info.params)


@rule("gather")
def gather(call: Call) -> None:
    """Picks along one dimension by an index of the result's shape."""
    tensor, ids = call["self"], call["index"]
    info, where = call.info(tensor), call.info(ids)
    d = positive(call["dim"], tensor.ndim)
    link(call, ids, info.dims[d])
    for i, (a, b) in enumerate(zip(info.dims, where.dims, strict=True)):
        if i != d and length(a) == length(b):
            unify(a, b)
    call.put(where.dims, tensor, values=info.values, selected=info.selected)


@rule("topk", "sort", "argsort", "msort")
def topk(call: Call) -> None:
    """The chosen positions are a new axis; the indices point into the old one."""
    tensor = call["self"]
    info = call.info(tensor)
    d = positive(call.get("dim", -1), tensor.ndim)
    if info.kind is not Kind.CONSTANT:
        for atom in atoms(info.dims[d]):
            atom.flags.add("chosen")
        if call.name == "topk":
            call.tracer.at_least(info.dims[d], int(call["k"]))
    dims = list(info.dims)
    dims[d] = fresh(call.outputs[0].shape[d])
    for i, output in enumerate(call.outputs):
        integer = not output.is_floating_point()
        call.put(dims, tensor, output=i, values=info.dims[d] if integer else None, selected=integer)


@rule("one_hot", "_one_hot")
def one_hot(call: Call) -> None:
    """A new last dimension: the axis that the values index."""
    ids = call.tensors[0]
    info = call.info(ids)
    size = call.outputs[0].shape[-1]
    axis = info.values if info.values is not None else fresh(size)
    missing = size - length(axis)
    call.put([*info.dims, axis if missing == 0 else concat([axis, fresh(missing)])])


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(call: Call) -> None:
    """Writes along one dimension at positions given by an index."""
    tensor, ids = call["self"], call["index"]
    info = call.info(tensor)
    d = positive(call["dim"], tensor.ndim)
    link(call, ids, info.dims[d])
    for i, (a, b) in enumerate(zip(info.dims, call.info(ids).dims, strict=True)):
        if i != d and length(a) == length(b):
            unify(a, b)
    call.put(info.dims)


@rule("masked_scatter", "masked_scatter_")
def masked_scatter(call: Call) -> None:
    """Writes elements in order wherever a mask is set: whole rows, where the mask is one value along the last axis."""
    tensor, mask, source = call["self"], call["mask"], call["source"]
    info, given = call.info(tensor), call.info(source)
    same = bool(mask.ndim) and (mask.shape[-1] == 1 or mask.stride(-1) == 0)
    if not same or source.ndim == 0 or source.shape[-1] != tensor.shape[-1]:
        call.tracer.unknown(call)
        return
    unify(info.dims[-1], given.dims[-1])
    for expr in given.dims[:-1]:
        call.tracer.freeze(expr, f"positions along it are handed out in order by '{call.name}'")
    call.put(info.dims, tensor, source)


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(call: Call) -> None:
    """Adds slices into one dimension at the given positions."""
    tensor, source = call["self"], call["source"]
    info = call.info(tensor)
    d = positive(call["dim"], tensor.ndim)
    link(call, call["index"], info.dims[d])
    for i, (a, b) in enumerate(zip(info.dims, call.info(source).dims, strict=True)):
        if i != d:
            unify(a, b)
    call.put(info.dims)


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(call: Call) -> None:
    """Writes at positions; only constants are followed."""
    info = call.info(call["self"])
    masks = [ids for ids in call["indices"] if ids is not None and ids.dtype == torch.bool]
    if len(masks) == 1 and call["indices"][0] is masks[0]:
        beyond = info.dims[masks[0].ndim :]
        for mine, theirs in zip(reversed(beyond), reversed(call.info(call["values"]).dims), strict=False):
            if length(mine) == length(theirs):
                unify(mine, theirs)
    if call.origin(*call.tensors)["kind"] is Kind.ACTIVATION:
        for d, ids in enumerate(call["indices"]):
            if ids is not None and ids.dtype != torch.bool:
                link(call, ids, info.dims[d])
    call.put(info.dims)
