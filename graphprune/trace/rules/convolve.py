"""Convolutions and what goes with them: channels are summed over, or pass side by side; positions are mixed."""

from __future__ import annotations

from graphprune.trace.axes import Expr, atoms, fresh, length, regroup, unify
from graphprune.trace.record import Kind
from graphprune.trace.rules.table import Call, rule


@rule("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "convolution_overrideable", "mkldnn_convolution")
def convolution(call: Call) -> None:
    """Input (batch, C, …), weight (C_out, C / groups, …); with one group per channel, channels stay apart."""
    tensor, weight = call.get("input", call.tensors[0]), call["weight"]
    x, w = call.info(tensor), call.info(weight)
    groups, channels = int(call["groups"]), int(tensor.shape[1])
    if call.get("transposed"):
        call.tracer.unknown(call)
        return
    if groups == 1:
        unify(x.dims[1], w.dims[1])
        if w.kind is Kind.WEIGHT and x.kind is Kind.ACTIVATION:
            call.tracer.consumed(w.params, w.dims[1], x)
        out = w.dims[0]
    elif groups == channels == weight.shape[0]:
        unify(x.dims[1], w.dims[0])
        out = w.dims[0]
        _mix(out)
    else:
        (ours, inner), (theirs, _) = (regroup([e], [groups, length(e) // groups]) for e in (x.dims[1], w.dims[0]))
        unify(ours, theirs)
        unify(inner, w.dims[1])
        if w.kind is Kind.WEIGHT and x.kind is Kind.ACTIVATION:
            call.tracer.consumed(w.params, w.dims[1], x)
        out = w.dims[0]
        _mix(ours)
    bias = call.get("bias")
    if bias is not None:
        unify(out, call.info(bias).dims[0])
    sizes = call.outputs[0].shape[2:]
    call.put([x.dims[0], out, *(fresh(n) for n in sizes)])


_POOLS = "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d \
_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d"
_SIZES = "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d \
upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"


@rule(*_POOLS.split(), *_SIZES.split())
def resample(call: Call) -> None:
    """Pooling and interpolation: every result comes from several positions; what lies before those stays apart."""
    info = call.info(call.tensors[0])
    spatial = next(n for n in (1, 2, 3) if f"{n}d" in call.name)
    if info.kind is not Kind.CONSTANT:
        for expr in info.dims[-spatial:]:
            call.tracer.freeze(expr, f"positions are mixed by '{call.name}'")
    for i, output in enumerate(call.outputs):
        call.put([*info.dims[:-spatial], *(fresh(n) for n in output.shape[-spatial:])], output=i)


def _mix(channels: Expr) -> None:
    for atom in atoms(channels):
        atom.flags.add("mixed_positions")
