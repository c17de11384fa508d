"""Specs of whole runs of ``gp.prune`` on a tiny decoder."""

from __future__ import annotations

# Of 4 heads 2: a stock config must divide the hidden size by the number of query heads.
TARGETS = [{"role": "attention.group", "count": 2}, {"role": "mlp.channel", "ratio": 0.25}]


def make_spec(mode="joint", targets=TARGETS, training=None, **rest):
    """Four steps, in each of which something goes."""
    usual = {"mode": mode, "steps": 4, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-2}
    return {
        "targets": targets,
        "criterion": {"name": "lora", "average": 0.5},
        "training": {**usual, **(training or {})},
        "schedule": {"every": 1, "warmup": 0.0, "cooldown": 0.3},
        **rest,
    }
