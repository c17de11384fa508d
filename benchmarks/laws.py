"""The largest difference between masked and reshaped logits, by decoder family: a table of docs/results.md.

    python benchmarks/laws.py

Tiny decoders (tests/decoders.py) with random parameters, float32, every prunable group of every layer: a random
quarter of its units. ``cached`` continues a sequence from a KV cache; ``scale`` is the largest logit, and ``effect``
what the mask changed, both to compare with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import graphprune as gp
from tests.decoders import DECODERS, tiny, tokens
from tests.test_laws import some_plan


@torch.no_grad()
def differences(name: str) -> tuple[int, float, float, float, float]:
    """Groups cut, largest |masked − reshaped|, the same from a KV cache, largest logit, largest effect of the mask."""
    model = tiny(name, **({"rms_norm_eps": 1e-12} if name == "olmo2" else {}))
    graph = gp.trace(model)
    plan = some_plan(graph, ":", 0.25)
    ids = tokens()
    dense = model(input_ids=ids).logits
    with gp.masked(model, plan, graph):
        masked = model(input_ids=ids).logits
    small = gp.reshape(model, plan, graph)
    direct = (small(input_ids=ids).logits - masked).abs().max()
    first = small(input_ids=ids[:, :6], use_cache=True)
    rest = small(input_ids=ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
    cached = (rest.logits - masked[:, 6:]).abs().max()
    return (
        len(plan.removed),
        float(direct),
        float(cached),
        float(masked.abs().max()),
        float((masked - dense).abs().max()),
    )


if __name__ == "__main__":
    print("| decoder | groups cut | masked − reshaped | from a KV cache | scale | effect |\n|---|---|---|---|---|---|")
    for decoder in DECODERS:
        groups, direct, cached, scale, effect = differences(decoder)
        print(f"| {decoder} | {groups} | {direct:.1e} | {cached:.1e} | {scale:.2f} | {effect:.2f} |")
