"""Measures against counting by hand."""

import pytest
import torch

from graphprune.plan import PrunePlan
from graphprune.report import measure
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.decoders import tiny, tokens

HIDDEN, HEADS, KV, SIZE, CHANNELS, LAYERS, VOCAB = 48, 8, 4, 6, 40, 3, 97


def macs_by_hand(length):
    attention = HIDDEN * SIZE * (2 * HEADS + 2 * KV) * length + 2 * length * length * HEADS * SIZE
    return LAYERS * (attention + 3 * HIDDEN * CHANNELS * length) + HIDDEN * VOCAB * length


def test_a_dense_decoder():
    model = tiny("llama")
    got = measure(model, 32)
    per_layer = HIDDEN * SIZE * (2 * HEADS + 2 * KV) + 3 * HIDDEN * CHANNELS + 2 * HIDDEN
    assert got.parameters == LAYERS * per_layer + 2 * VOCAB * HIDDEN + HIDDEN
    assert got.weight_bytes == 4 * got.parameters
    assert got.macs == macs_by_hand(32)
    assert got.cache_bytes == LAYERS * 2 * KV * SIZE * 4 * 32
    assert got.cache_bytes_per_token == LAYERS * 2 * KV * SIZE * 4
    assert got.notes == ()


def test_measuring_changes_nothing_and_needs_no_weights():
    model = tiny("llama").train()
    before = model(tokens()).logits
    got = measure(model, 16)
    assert model.training
    assert torch.equal(model(tokens()).logits, before)
    assert model.config._attn_implementation == "sdpa"
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert measure(empty, 16) == got


def test_shared_weights_count_once_and_16_bit_weights_half():
    tied = measure(tiny("llama-tied-bias"), 8)
    half = measure(tiny("llama-tied-bias").to(torch.bfloat16), 8)
    untied = measure(tiny("llama-tied-bias", tie_word_embeddings=False), 8)
    assert untied.parameters - tied.parameters == VOCAB * HIDDEN
    assert half.weight_bytes * 2 == tied.weight_bytes
    assert half.cache_bytes * 2 == tied.cache_bytes


def test_experts_count_as_far_as_a_token_uses_them():
    few, many = (measure(tiny("mixtral", num_local_experts=n), 8) for n in (4, 8))
    assert many.parameters > few.parameters
    assert many.macs - few.macs == LAYERS * 4 * HIDDEN * 8  # only the router grows


def test_the_sequence_is_no_longer_than_the_model_can_read():
    assert measure(tiny("gpt2"), 512).sequence_length == 64


@pytest.mark.parametrize("name", ["gpt2", "bloom", "phi3", "falcon-alibi", "mixtral", "gemma3_text", "opt"])
def test_a_pruned_model_costs_less(name):
    model = tiny(name)
    graph = trace(model)
    before = measure(model, 32)
    plan = PrunePlan.remove(graph, {g.name: [0] for g in graph.select(role="attention.group") if g.layer})
    reshape(model, plan, graph)
    after = measure(model, 32)
    assert after.parameters < before.parameters
    assert after.macs < before.macs
    assert after.cache_bytes < before.cache_bytes


def test_what_cannot_be_measured_is_said():
    got = measure(torch.nn.Linear(3, 2), 8)
    assert (got.parameters, got.macs, got.cache_bytes) == (8, None, None)
    assert "operations were not counted" in got.notes[0]
    assert "cache was not measured" in got.notes[1]
