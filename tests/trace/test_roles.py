"""Roles follow from what was done along an axis."""

from __future__ import annotations

import pytest

from graphprune.trace.roles import PRUNABLE, UNSUPPORTED, Evidence, role_of, uncounted


def seen(*flags, stream=False, consumed=True, reads_stream=True, writes_stream=True, feeds=(), beside=(), along=()):
    return Evidence(
        flags=frozenset(flags),
        stream=stream,
        produced=True,
        consumed=consumed,
        reads_stream=reads_stream,
        writes_stream=writes_stream,
        feeds=frozenset(map(frozenset, feeds)),
        beside=frozenset(beside),
        along=frozenset(along),
    )


@pytest.mark.parametrize(
    ("evidence", "role"),
    [
        (seen("tokens", "lookup"), "vocab"),
        (seen("output"), "vocab"),
        (seen("lookup"), "position"),
        (seen("routed", "chosen", "softmax"), "moe.expert"),
        (seen("heads", "softmax_batch"), "attention.group"),
        (seen("heads", "softmax_batch", "repeat"), "attention.query"),
        (seen("heads", "softmax_batch", "repeat", "joined"), "attention.group"),
        (seen("heads"), "mixer.head"),
        (seen("matched", beside=["softmax_batch"]), "attention.qk_dim"),
        (seen("matched"), "mixer.state"),
        (seen("mixed_values"), "attention.v_dim"),
        (seen("mixed_values", "mixed_positions"), "mixer.channel"),
        (seen("mixed_values", "mixed_positions", along=["heads"]), "attention.v_dim"),
        (seen("lookup", stream=True), "hidden"),
        (seen("mixed_positions"), "mixer.channel"),
        (seen(), "mlp.channel"),
        (seen(beside=["expert_weights"]), "moe.channel"),
        (seen(writes_stream=False), "rank"),
        (seen(writes_stream=False, feeds=[["softmax_batch"], ["matched"]]), "mla.q_rank"),
        (seen(writes_stream=False, feeds=[["softmax_batch"], ["mixed_values"]]), "mla.kv_rank"),
        (seen(writes_stream=False, feeds=[["softmax_batch"], ["matched", "mixed_values"]]), "mla.q_rank"),
        (seen(consumed=False), "other"),
    ],
)
def test_roles(evidence, role):
    assert role_of(evidence) == role
    assert (role in PRUNABLE) != (role in UNSUPPORTED), "every role is prunable, or frozen with a reason"


@pytest.mark.parametrize(
    ("role", "flags", "words"),
    [
        ("mlp.channel", {"softmax_batch"}, None),
        ("mlp.channel", {"summed"}, "without a weight"),
        ("rank", {"softmax"}, "without a weight"),
        ("moe.expert", {"summed", "softmax", "chosen"}, None),
    ],
)
def test_a_unit_that_counts_where_nobody_weighs_it_cannot_be_silenced(role, flags, words):
    reason = uncounted(role, frozenset(flags))
    assert reason is None if words is None else words in reason
