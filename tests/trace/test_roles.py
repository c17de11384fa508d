"""Roles follow from what was done along an axis."""

from __future__ import annotations

import pytest

from graphprune.trace.roles import PRUNABLE, UNSUPPORTED, Evidence, inexact_reason, role_of


def seen(*flags, layers=(0,), produced=True, consumed=True, writes_hidden=True, beside_experts=False):
    return Evidence(frozenset(flags), frozenset(layers), produced, consumed, writes_hidden, beside_experts)


@pytest.mark.parametrize(
    ("evidence", "role"),
    [
        (seen("tokens", "lookup"), "vocab"),
        (seen("output"), "vocab"),
        (seen("lookup", layers=[None]), "position"),
        (seen("routed", "chosen", "softmax"), "moe.expert"),
        (seen("heads", "softmax_batch"), "attention.group"),
        (seen("heads", "repeat"), "attention.query"),
        (seen("matched"), "attention.qk_dim"),
        (seen("mixed_values"), "attention.v_dim"),
        (seen(layers=[0, 1]), "hidden"),
        (seen(layers=[None, 0]), "hidden"),
        (seen(), "mlp.channel"),
        (seen(beside_experts=True), "moe.channel"),
        (seen(writes_hidden=False), "rank"),
        (seen(consumed=False), "other"),
    ],
)
def test_roles(evidence, role):
    assert role_of(evidence) == role
    assert (role in PRUNABLE) != (role in UNSUPPORTED), "every role is prunable, or frozen with a reason"


@pytest.mark.parametrize(
    ("role", "flags", "scales", "words"),
    [
        ("mlp.channel", {"softmax_batch"}, False, None),
        ("attention.group", {"averaged"}, False, "norm or mean"),
        ("attention.group", {"mean_square"}, True, "epsilon"),
        ("attention.group", {"mean_square"}, False, "norm or mean"),
        ("attention.group", {"mean_square", "averaged"}, True, "norm or mean"),
        ("mlp.channel", {"summed"}, False, "without a weight"),
        ("moe.expert", {"summed", "softmax", "chosen"}, False, None),
    ],
)
def test_inexactness(role, flags, scales, words):
    reason = inexact_reason(role, frozenset(flags), scales)
    assert reason is None if words is None else words in reason
