"""Law 1, the central test of the project: masked equals reshaped, on the real modules of every family."""

from __future__ import annotations

import pytest
import torch

import graphprune as gp
from tests.decoders import DECODERS, tiny, tokens

TOLERANCE = 1e-5
ALIGNED = 4  # grouped expert kernels want rows of a multiple of 16 bytes: widths change in steps of four floats


def some_plan(graph, layers, share):
    """A random plan: one unit, or a share of the units, of every prunable group in the given layers."""
    generator = torch.Generator().manual_seed(len(graph.groups))
    units = {}
    for group in graph.select(layers=layers):
        count = min(max(1, int(group.size * share)), group.size - group.minimum)
        if group.role == "moe.channel":
            count = max(ALIGNED, count // ALIGNED * ALIGNED)
        units[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    return gp.PrunePlan.remove(graph, units)


@pytest.mark.parametrize(
    ("layers", "share"),
    [
        pytest.param("1", 0.0, id="one-unit-of-one-layer"),
        pytest.param(":", 0.25, id="a-quarter-of-all-layers"),
        pytest.param("1", 0.25, id="a-quarter-of-one-layer", marks=pytest.mark.slow),
        pytest.param(":", 0.0, id="one-unit-of-all-layers", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_masked_equals_reshaped(name, share, layers):
    model = tiny(name)
    graph = gp.trace(model)
    plan = some_plan(graph, layers, share)
    ids = tokens()
    dense = model(input_ids=ids).logits
    with gp.masked(model, plan, graph):
        masked = model(input_ids=ids).logits
    assert (masked - dense).abs().max() > 1e-3, "the mask must matter, or equality proves nothing"
    small = gp.reshape(model, plan, graph)
    assert sum(p.numel() for p in small.parameters()) < sum(_numel(s) for s in graph.shapes.values())
    torch.testing.assert_close(small(input_ids=ids).logits, masked, atol=TOLERANCE, rtol=0)
    first = small(input_ids=ids[:, :6], use_cache=True)
    rest = small(input_ids=ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.logits, masked[:, 6:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "falcon-grouped", "mixtral"])
@torch.no_grad()
def test_a_pruned_model_generates_like_the_masked_one(name):
    model = tiny(name)
    graph = gp.trace(model)
    plan = some_plan(graph, ":", 0.25)
    ids = tokens(batch=1, length=11)  # longer than the sliding windows of the family
    settings = {"max_new_tokens": 8, "do_sample": False}
    with gp.masked(model, plan, graph):
        expected = model.generate(ids, **settings)
    assert torch.equal(gp.reshape(model, plan, graph).generate(ids, **settings), expected)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-2])
@torch.no_grad()
def test_under_a_norm_scale_and_epsilon_follow(epsilon):
    model = tiny("olmo2", rms_norm_eps=epsilon)
    graph = gp.trace(model)
    plan = some_plan(graph, ":", 0.25)
    ids = tokens()
    with gp.masked(model, plan, graph):
        masked = model(input_ids=ids).logits
    small = gp.reshape(model, plan, graph)
    torch.testing.assert_close(small(input_ids=ids).logits, masked, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("role", ["hidden", "layer"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_residual_stream_and_whole_layers(name, role):
    model = tiny(name)
    graph = gp.trace(model)
    (group,) = graph.select(role=role)
    units = [0] if role == "layer" else [0, 1, 2, 7, 8, 9, 20, 47]
    plan = gp.PrunePlan.remove(graph, {group.name: units})
    ids = tokens()
    dense = model(input_ids=ids).logits
    with gp.masked(model, plan, graph):
        masked = model(input_ids=ids).logits
    assert (masked - dense).abs().max() > 1e-3, "the mask must matter, or equality proves nothing"
    small = gp.reshape(model, plan, graph)
    torch.testing.assert_close(small(input_ids=ids).logits, masked, atol=TOLERANCE, rtol=0)
    first = small(input_ids=ids[:, :6], use_cache=True)
    rest = small(input_ids=ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.logits, masked[:, 6:], atol=TOLERANCE, rtol=0)


def _numel(shape):
    return torch.Size(shape).numel()
