"""Integers that follow the removed units."""

import copy

import pytest

from graphprune.errors import ReshapeError
from graphprune.plan import PrunePlan
from graphprune.reshape.constants import ConstantCut
from graphprune.reshape.rules import changed_rules, rule_edits
from graphprune.reshape.view import ConfigView, give_view, take_views
from graphprune.trace import trace
from tests.decoders import tiny


def test_every_changed_integer_is_listed_with_both_values():
    model = tiny("gpt2")
    graph = trace(model)
    name = graph.select(role="attention.group", layers=1).names[0]
    plan = PrunePlan.remove(graph, {name: [0, 1, 2]})
    changed = changed_rules(graph, plan.sizes, plan.sizes_after())
    assert ("split_size", 48, 30) in {(rule.attribute, old, new) for rule, old, new in changed}
    assert all(old != new and rule.reader.startswith("transformer.h.1.attn") for rule, old, new in changed)


def test_an_integer_that_is_not_what_was_traced_is_refused():
    model = tiny("gpt2")
    graph = trace(model)
    name = graph.select(role="attention.group", layers=1).names[0]
    model.transformer.h[1].attn.split_size = 24
    plan = PrunePlan.remove(graph, {name: [0]})
    with pytest.raises(ReshapeError, match=r"h\.1\.attn\.split_size, read in .*: expected 48, .*got 24"):
        rule_edits(model, changed_rules(graph, plan.sizes, plan.sizes_after()))


def test_a_view_reads_through_and_survives_copying():
    model = tiny("llama")
    layer = model.model.layers[0].self_attn
    give_view(layer, model.config, {"num_attention_heads": 5})
    give_view(layer, model.config, {"hidden_size": 7})
    assert (layer.config.num_attention_heads, layer.config.hidden_size) == (5, 7)
    assert model.config.num_attention_heads == 8
    layer.config.intermediate_size = 3
    assert model.config.intermediate_size == 3
    twin = copy.deepcopy(model)
    assert twin.model.layers[0].self_attn.config.num_attention_heads == 5
    twin.config.intermediate_size = 9
    assert twin.model.layers[0].self_attn.config.intermediate_size == 9
    with pytest.raises(AttributeError):
        _ = layer.config.no_such_field
    take_views(model)
    assert layer.config is model.config
    assert not isinstance(twin.config, ConfigView)


def test_a_constant_cut_leaves_other_calls_alone():
    import torch

    cut = ConstantCut("bias", 0, 4, torch.tensor([1, 3]))
    module = torch.nn.Identity()
    value = torch.arange(4.0)[:, None]
    assert cut(module, (), {"bias": value})[1]["bias"].flatten().tolist() == [1, 3]
    folded = torch.arange(8.0)  # a batch of two in the same dimension
    assert cut(module, (), {"bias": folded})[1]["bias"].tolist() == [1, 3, 5, 7]
    assert cut(module, (value,), {})[0] == (value,)
    assert cut(module, (), {"bias": None})[1] == {"bias": None}
    assert ConstantCut("1", 0, 4, torch.tensor([0]))(module, (None, value), {})[0][1].tolist() == [[0]]
    with pytest.raises(ReshapeError, match="multiple of 4 entries in dimension 0, got 3"):
        cut(module, (), {"bias": torch.zeros(3)})
