"""What an axis is, judged by what was done along it and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass

PRUNABLE = ("attention.group", "attention.query", "mlp.channel", "moe.expert", "moe.channel")

UNSUPPORTED = {
    "attention.qk_dim": "query/key dimensions take part in a product of two activations and in position embeddings",
    "attention.v_dim": "value dimensions of single heads are not pruned yet; prune attention.group instead",
    "hidden": "the residual stream runs through every layer; pruning it is not supported yet",
    "vocab": "units are token ids; removing one would change the tokenizer",
    "position": "units are positions in the text",
    "rank": "an inner axis that does not lead back to the residual stream, such as a low-rank bottleneck in front of "
    "attention; pruning it is not supported yet",
    "other": "the traced operations do not tell what this axis is",
}
"""Why axes of these roles are frozen."""


@dataclass(frozen=True)
class Evidence:
    """What is known about one axis.

    Attributes:
        flags: marks left by operations (see :mod:`graphprune.trace.rules`).
        layers: indices of the layers its tensors belong to; None for tensors outside of the main stack.
        produced: a weight writes this axis.
        consumed: a weight sums over this axis.
        writes_hidden: a weight that sums over this axis writes the residual stream.
        beside_experts: some tensor has an expert axis next to this one.
    """

    flags: frozenset[str]
    layers: frozenset[int | None]
    produced: bool
    consumed: bool
    writes_hidden: bool
    beside_experts: bool


def role_of(seen: Evidence) -> str:
    """The role of an axis; ``other`` where the operations do not tell."""
    flags = seen.flags
    if flags & {"tokens", "output"}:
        return "vocab"
    if "lookup" in flags and not flags & {"routed", "heads"}:
        return "position"
    if flags & {"routed", "chosen"}:
        return "moe.expert"
    if "heads" in flags:
        return "attention.query" if "repeat" in flags else "attention.group"
    if "matched" in flags:
        return "attention.qk_dim"
    if "mixed_values" in flags:
        return "attention.v_dim"
    if len(seen.layers) > 1 or None in seen.layers:
        return "hidden"
    if not (seen.produced and seen.consumed):
        return "other"
    if seen.beside_experts:
        return "moe.channel"
    return "mlp.channel" if seen.writes_hidden else "rank"


def inexact_reason(role: str, flags: frozenset[str], scales: bool = False) -> str | None:
    """Why removing a unit is not the same as silencing it, or None where it is the same.

    ``scales`` says that every norm over the axis has a scale that can be corrected.
    """
    if "mean_square" in flags and "averaged" not in flags and scales:
        return "a root-mean-square norm runs over this axis; its scale is corrected, which leaves the norm's epsilon"
    if flags & {"averaged", "mean_square"}:
        return "a norm or mean is taken over this axis, so removing units changes it for those that stay"
    if role != "moe.expert" and flags & {"summed", "softmax", "chosen"}:
        return "the axis is reduced without a weight, so a silenced unit still counts"
    return None
