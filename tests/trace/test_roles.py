"""Roles follow from what was done along an axis."""

from __future__ import annotations

import pytest

from graphprune.trace.roles import PRUNABLE, UNSUPPORTED, Evidence, inexact_reason, role_of


def seen(*flags, stream=False, produced=True, consumed=True, writes_stream=True, feeds=(), beside=()):
    return Evidence(frozenset(flags), stream, produced, consumed, writes_stream, frozenset(feeds), frozenset(beside))


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
        (seen("lookup", stream=True), "hidden"),
        (seen("mixed_positions"), "mixer.channel"),
        (seen(), "mlp.channel"),
        (seen(beside=["expert_weights"]), "moe.channel"),
        (seen(writes_stream=False), "rank"),
        (seen(writes_stream=False, feeds=["softmax_batch", "matched"]), "mla.q_rank"),
        (seen(writes_stream=False, feeds=["softmax_batch", "mixed_values"]), "mla.kv_rank"),
        (seen(consumed=False), "other"),
    ],
)
def test_roles(evidence, role):
    assert role_of(evidence) == role
    assert (role in PRUNABLE) != (role in UNSUPPORTED), "every role is prunable, or frozen with a reason"


@pytest.mark.parametrize(
    ("role", "flags", "remedies", "words"),
    [
        ("mlp.channel", {"softmax_batch"}, set(), None),
        ("attention.group", {"averaged"}, {"scale", "epsilon", "statistics"}, "norm or mean"),
        ("attention.group", {"mean_square"}, {"scale", "epsilon"}, None),
        ("attention.group", {"mean_square"}, {"scale"}, "epsilon"),
        ("attention.group", {"mean_square"}, set(), "without a scale"),
        ("hidden", {"normalised"}, {"statistics"}, None),
        ("hidden", {"normalised"}, {"scale"}, "norm or mean"),
        ("hidden", {"normalised", "mean_square"}, {"statistics"}, "without a scale"),
        ("mlp.channel", {"summed"}, set(), "without a weight"),
        ("moe.expert", {"summed", "softmax", "chosen"}, set(), None),
    ],
)
def test_inexactness(role, flags, remedies, words):
    reason = inexact_reason(role, frozenset(flags), frozenset(remedies))
    assert reason is None if words is None else words in reason
