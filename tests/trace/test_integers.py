"""Integers that remember where they come from, and what is concluded from their uses."""

from __future__ import annotations

import copy

import pytest

import graphprune as gp
from graphprune.trace import trace
from graphprune.trace.integers import TracedInt, terms_of, traced_numbers
from tests.decoders import tiny, tokens

A, B = ("m", "heads"), ("m", "dim")


def number(value, source):
    return TracedInt(value, {((source, 1),): 1})


def test_arithmetic_keeps_value_and_provenance():
    heads, dim = number(8, A), number(6, B)
    assert heads * dim + 2 == 50
    assert terms_of(2 * heads * dim - 1) == {((B, 1), (A, 1)): 2, (): -1}
    assert terms_of((heads * dim) // dim) == {((A, 1),): 1}
    assert terms_of(heads // number(4, B) + 2) == {((B, -1), (A, 1)): 1, (): 2}
    assert type(heads // dim) is int, "an inexact quotient is a plain number"
    assert type(copy.deepcopy(heads)) is TracedInt


def test_attributes_are_restored_even_when_the_forward_fails():
    model = tiny("opt")
    attention = model.model.decoder.layers[0].self_attn
    seen = []

    def failing_forward():
        with traced_numbers(model):
            seen.extend([type(attention.num_heads), type(model.config.num_attention_heads)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_forward()
    assert seen == [TracedInt, TracedInt]
    assert type(attention.num_heads) is int and type(model.config.num_attention_heads) is int


def rules(name, reader):
    graph = trace(tiny(name))
    return {(r.owner, r.attribute): r for r in graph.rules if r.reader == reader}, graph.sizes()


def test_head_counts_that_a_forward_reads_are_found():
    found, sizes = rules("opt", "model.decoder.layers.1.self_attn")
    rule = found["model.decoder.layers.1.self_attn", "num_heads"]
    assert rule.value(sizes) == 8
    assert rule.value({**sizes, "model.decoder.layers.1.self_attn/attention.group": 3}) == 3


def test_counts_read_from_the_config_or_through_quotients_are_found():
    found, sizes = rules("phi3", "model.layers.0.self_attn")
    half = {**sizes, "model.layers.0.self_attn/attention.group": 2}
    assert found["config", "num_attention_heads"].value(half) == 4
    found, sizes = rules("falcon-grouped", "transformer.h.2.self_attention")
    half = {**sizes, "transformer.h.2.self_attention/attention.group": 2}
    assert found["transformer.h.2.self_attention", "num_heads"].value(half) == 4
    assert found["transformer.h.2.self_attention", "num_kv_heads"].value(half) == 2


def test_a_module_that_reads_its_own_view_of_the_config_is_followed():
    model = tiny("phi3")
    graph = trace(model)
    heads = graph.select(role="attention.group").names
    gp.reshape(model, gp.PrunePlan.remove(graph, {heads[0]: [0], heads[1]: [0, 1]}), graph)
    again = trace(model)
    rule = next(r for r in again.rules if (r.owner, r.reader) == ("config", "model.layers.1.self_attn"))
    assert rule.attribute == "num_attention_heads" and rule.value(again.sizes()) == 4


def test_equal_values_are_not_mistaken_for_each_other():
    found, _ = rules("opt", "model.decoder.layers.0.self_attn")
    assert {attribute for _, attribute in found} == {"num_heads"}, "head_dim, embed_dim and layer_idx must stay"


def test_a_quotient_that_is_one_tells_of_its_parts():
    """As many key heads as query heads: the number of slots per group, 1 + 2, is a constant of the forward."""
    model = tiny("falcon-grouped", num_kv_heads=8)
    graph = trace(model)
    group = "transformer.h.0.self_attention/attention.group"
    gp.reshape(model, gp.PrunePlan.remove(graph, {group: [0, 1, 2]}), graph)
    attention = model.transformer.h[0].self_attention
    assert (attention.num_heads, attention.num_kv_heads) == (5, 5)
    assert model(tokens()).logits.isfinite().all()
