"""What an axis is, judged by what was done along it and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass

PRUNABLE = (
    "attention.group",
    "attention.query",
    "mixer.head",
    "mixer.channel",
    "mlp.channel",
    "moe.expert",
    "moe.group",
    "moe.channel",
    "mla.q_rank",
    "mla.kv_rank",
    "rank",
    "hidden",
    "layer",
)

UNSUPPORTED = {
    "attention.qk_dim": "query/key dimensions take part in a product of two activations and in position embeddings",
    "attention.v_dim": "value dimensions of single heads are not pruned yet; prune attention.group instead",
    "mixer.state": "state dimensions take part in a product of two activations; prune mixer.head instead",
    "vocab": "units are token ids (or classes); removing one would change what the model reads or answers",
    "position": "units are positions in the text",
    "other": "the traced operations do not tell what this axis is",
}
"""Why axes of these roles are frozen."""


@dataclass(frozen=True)
class Evidence:
    """What is known about one axis.

    Attributes:
        flags: marks left by operations (see :mod:`graphprune.trace.rules`).
        stream: the residual stream that runs through the layers has this axis.
        produced: a weight writes this axis.
        consumed: a weight sums over this axis.
        reads_stream: a weight that writes this axis sums over the residual stream.
        writes_stream: a weight that sums over this axis writes the residual stream.
        feeds: marks of each axis that weights write which sum over this axis.
        beside: marks of the axes that some tensor has next to this one.
        along: marks of those among them that make up the same dimension with this one (heads, say).
    """

    flags: frozenset[str]
    stream: bool
    produced: bool
    consumed: bool
    reads_stream: bool
    writes_stream: bool
    feeds: frozenset[frozenset[str]]
    beside: frozenset[str]
    along: frozenset[str] = frozenset()


def role_of(seen: Evidence) -> str:
    """The role of an axis; ``other`` where the operations do not tell."""
    flags = seen.flags
    if "tokens" in flags:
        return "vocab"
    if seen.stream:
        return "hidden"
    if "output" in flags:
        return "vocab"
    if "lookup" in flags and not flags & {"routed", "assigned", "heads"}:
        return "position"
    if flags & {"routed", "chosen", "assigned"}:
        return "moe.group" if "expert_groups" in flags else "moe.expert"
    if "heads" in flags:
        return _heads(flags)
    if "matched" in flags:
        return "attention.qk_dim" if "softmax_batch" in seen.beside else "mixer.state"
    if "mixed_values" in flags and not _alone(seen):
        return "attention.v_dim"
    if not (seen.produced and seen.consumed):
        return "other"
    if "expert_weights" in seen.beside:
        return "moe.channel"
    if "mixed_positions" in flags:
        return "mixer.channel"
    return "mlp.channel" if seen.reads_stream and seen.writes_stream else _rank(seen.feeds)


def _heads(flags: frozenset[str]) -> str:
    if not flags & {"softmax_batch"}:
        return "mixer.head"
    return "attention.query" if "repeat" in flags and "joined" not in flags else "attention.group"


def _alone(seen: Evidence) -> bool:
    """Channels that a recurrence mixes one by one; the values of an attention lie in heads."""
    return "mixed_positions" in seen.flags and "heads" not in seen.along


def _rank(feeds: frozenset[frozenset[str]]) -> str:
    """An inner axis in front of heads is a latent of attention; one that values come from, its KV latent.

    Values are mixed and compared with nothing. Queries and keys are compared, and an indexer mixes even those; where
    keys are the values, they come from one axis, which is no query's latent.
    """
    if not any("softmax_batch" in marks for marks in feeds):
        return "rank"
    return "mla.kv_rank" if any("mixed_values" in marks and "matched" not in marks for marks in feeds) else "mla.q_rank"


def uncounted(role: str, flags: frozenset[str]) -> str | None:
    """Why no mask could make up for a unit that is gone, or None; norms apart (:mod:`graphprune.trace.norms`)."""
    if not role.startswith("moe.") and flags & {"summed", "softmax", "chosen"}:
        return "the axis is reduced without a weight, so a silenced unit still counts"
    return None
