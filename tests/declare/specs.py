"""Declarations for the networks in models.py."""

from __future__ import annotations

import graphprune as gp

HEADS = {
    "role": "attention.group",
    "size": 6,
    "completes": True,
    "members": [
        {"tensor": "blocks.{layer}.attention.query.weight"},
        {"tensor": "blocks.{layer}.attention.key.weight"},
        {"tensor": "blocks.{layer}.attention.value.weight"},
        {"tensor": "blocks.{layer}.attention.back.weight", "dim": 1, "consumes": True},
    ],
    "sizes": {"blocks.{layer}.attention.n_heads": "size"},
}
FUSED = {
    "role": "attention.group",
    "size": 6,
    "members": [
        *({"tensor": "blocks.{layer}.attention.qkv.*", "start": s, "length": 24} for s in (0, 24, 48)),
        {"tensor": "blocks.{layer}.attention.back.weight", "dim": 1, "consumes": True},
    ],
    "sizes": {"blocks.{layer}.attention.heads": "size"},
}
EXPERTS = {
    "role": "moe.expert",
    "completes": True,
    "members": [{"tensor": "blocks.{layer}.ffn.up"}, {"tensor": "blocks.{layer}.ffn.down"}],
    "sizes": {"blocks.{layer}.ffn.number": "size"},
}
LISTED = {
    "role": "moe.expert",
    "completes": True,
    "entries": "blocks.{layer}.ffn.experts",
}
LISTED_CHANNELS = {
    "role": "moe.channel",
    "size": 10,
    "completes": True,
    "members": [
        {"tensor": "blocks.{layer}.ffn.experts.*.up.*"},
        {"tensor": "blocks.{layer}.ffn.experts.*.down.weight", "dim": 1, "consumes": True},
    ],
}
CHANNELS = {
    "role": "moe.channel",
    "size": 8,
    "members": [
        {"tensor": "blocks.{layer}.ffn.up", "blocks": [{"unit_stride": 1, "loops": [[5, 8]]}]},
        {"tensor": "blocks.{layer}.ffn.down", "blocks": [{"unit_stride": 1, "loops": [[5, 8]]}], "consumes": True},
    ],
}


def spec(*groups, role="*", **target):
    return gp.load_spec(
        {
            "targets": [{"role": role, **(target or {"count": 1})}],
            "groups": list(groups),
            "criterion": {"name": "magnitude"},
            "training": {"mode": "none"},
        }
    )
