"""Contractions: products summed over a shared axis."""

from __future__ import annotations

import torch

from graphprune.trace.axes import Expr, atoms, fresh, length, regroup, unify
from graphprune.trace.record import Info, Kind
from graphprune.trace.rules.table import Call, rule


def contract(call: Call, left: torch.Tensor, right: torch.Tensor, inner: tuple[Expr, Expr], batch: list[Expr]) -> None:
    """Unites the summed axes and records who consumes what.

    ``inner`` is the summed axis as each operand has it; along ``batch`` independent products are computed.
    """
    unify(*inner)
    a, b = call.info(left), call.info(right)
    if min(a.kind, b.kind) is Kind.ACTIVATION:
        _match(*inner, batch)
        _flag_values(a, b)
        return
    for weight, other, expr in ((a, b, inner[0]), (b, a, inner[1])):
        if weight.kind is Kind.WEIGHT and other.kind is Kind.ACTIVATION:
            call.tracer.consumed(weight.params, expr, other)


def _match(left: Expr, right: Expr, batch: list[Expr]) -> None:
    """Two activations are multiplied and summed: over a matched axis, side by side for every head."""
    unify(left, right)
    for atom in atoms(left):
        atom.flags.add("matched")
    for atom in (a for expr in batch for a in atoms(expr)):
        atom.flags.add("heads")


def _flag_values(a: Info, b: Info) -> None:
    """In weights @ values the axis of the values that survives is the value dimension of attention."""
    for info in (a, b):
        for atom in atoms(info.dims[-1] if info is b else info.dims[-2]):
            atom.flags.add("mixed_values")


@rule("mm")
def mm(call: Call) -> None:
    """(n, k) @ (k, m)."""
    left, right = call["self"], call["mat2"]
    a, b = call.info(left), call.info(right)
    contract(call, left, right, (a.dims[1], b.dims[0]), [])
    call.put([a.dims[0], b.dims[1]])


@rule("addmm")
def addmm(call: Call) -> None:
    """Bias + (n, k) @ (k, m)."""
    left, right = call["mat1"], call["mat2"]
    a, b = call.info(left), call.info(right)
    contract(call, left, right, (a.dims[1], b.dims[0]), [])
    _add(call, call["self"], [a.dims[0], b.dims[1]])


@rule("bmm")
def bmm(call: Call) -> None:
    """(b, n, k) @ (b, k, m)."""
    dims = _bmm(call, call["self"], call["mat2"])
    call.put(dims)


@rule("baddbmm")
def baddbmm(call: Call) -> None:
    """Bias + (b, n, k) @ (b, k, m)."""
    _add(call, call["self"], _bmm(call, call["batch1"], call["batch2"]))


def _bmm(call: Call, left: torch.Tensor, right: torch.Tensor) -> list[Expr]:
    a, b = call.info(left), call.info(right)
    unify(a.dims[0], b.dims[0])
    contract(call, left, right, (a.dims[2], b.dims[1]), [a.dims[0]])
    if {a.kind, b.kind} == {Kind.WEIGHT, Kind.ACTIVATION}:
        for atom in atoms(a.dims[0]):
            atom.flags.add("batched_weights")
    return [a.dims[0], a.dims[1], b.dims[2]]


def _add(call: Call, bias: torch.Tensor, dims: list[Expr]) -> None:
    own = call.info(bias).dims
    for mine, theirs in zip(own, dims[len(dims) - len(own) :], strict=True):
        if length(mine) == length(theirs):
            unify(mine, theirs)
    call.put(dims)


@rule("mv", "addmv")
def mv(call: Call) -> None:
    """(n, k) @ (k)."""
    left, right = (call["self"], call["vec"]) if call.name == "mv" else (call["mat"], call["vec"])
    a, b = call.info(left), call.info(right)
    contract(call, left, right, (a.dims[1], b.dims[0]), [])
    call.put([a.dims[0]])


@rule("dot", "vdot")
def dot(call: Call) -> None:
    """(k) · (k)."""
    left, right = call.tensors[:2]
    contract(call, left, right, (call.info(left).dims[0], call.info(right).dims[0]), [])
    call.put([])


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(call: Call) -> None:
    """softmax(q kᵀ) v for (batch, heads, positions, dim); with fewer key heads than query heads, in groups."""
    query, key, value = call["query"], call["key"], call["value"]
    q, k, v = call.info(query), call.info(key), call.info(value)
    unify(q.dims[0], k.dims[0])
    unify(k.dims[1], v.dims[1])
    unify(k.dims[2], v.dims[2])
    if query.shape[1] == key.shape[1]:
        unify(q.dims[1], k.dims[1])
    else:
        groups, repeats = regroup([q.dims[1]], [key.shape[1], query.shape[1] // key.shape[1]])
        unify(groups, k.dims[1])
        for atom in atoms(repeats):
            atom.flags.add("repeat")
    _match(q.dims[3], k.dims[3], [q.dims[1], k.dims[1]])
    mask = call.get("attn_mask", call.get("attn_bias"))
    if isinstance(mask, torch.Tensor):
        scores = [q.dims[0], q.dims[1], q.dims[2], k.dims[2]]
        for mine, theirs in zip(call.info(mask).dims, scores[4 - mask.ndim :], strict=True):
            if length(mine) > 1:
                unify(theirs, mine)
    for expr, flag in ((q.dims[1], "softmax_batch"), (v.dims[3], "mixed_values"), (k.dims[2], "softmax")):
        for atom in atoms(expr):
            atom.flags.add(flag)
    call.put([q.dims[0], q.dims[1], q.dims[2], v.dims[3]])
    for i, extra in enumerate(call.outputs[1:], start=1):
        call.put([fresh(n) for n in extra.shape], output=i)


@rule("linalg_solve_triangular", "triangular_solve", "cholesky_solve")
def solve(call: Call) -> None:
    """Solves a system along the second last dimension; batches are solved side by side."""
    left, right = call.tensors[:2]
    a, b = call.info(left), call.info(right)
    for mine, theirs in zip(a.dims[:-2], b.dims[:-2], strict=True):
        unify(mine, theirs)
    unify(a.dims[-1], b.dims[-2])
    for expr in (a.dims[-2], a.dims[-1]):
        call.tracer.freeze(expr, f"positions are mixed by '{call.name}'")
    call.put(b.dims)
