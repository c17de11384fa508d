"""Configs of changed models: fields that count layers by their numbers follow."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.candidates import numbers_of_entries
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.decoders import tiny, tokens


@pytest.mark.parametrize(("gone", "dense"), [(0, []), (1, [0]), (2, [0])])
def test_layers_go_although_the_config_numbers_some_of_them(gone, dense, tmp_path):
    """The first layer has no experts, because a list says so."""
    model = tiny("qwen3_moe", mlp_only_layers=[0])
    graph = trace(model)
    name = graph.select(role="layer").names[0]
    reshape(model, PrunePlan.remove(graph, {name: [gone]}), graph)
    assert history_of(model).stock
    assert model.config.mlp_only_layers == dense
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(stock(tokens()).logits, model(tokens()).logits)


def test_fields_that_may_number_entries():
    config = {
        "first_so_many": 2,
        "these": [0, 3],
        "none": [],
        "one_each": [3, 0, 1, 2],
        "far": 9,
        "pad_token_id": 1,
        "flag": True,
        "part": {"model_type": "x", "first": 4},
    }
    found = dict(numbers_of_entries(config, 4, [1, 3]))
    assert found == {("first_so_many",): 1, ("these",): [1], ("part", "first"): 2}


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "gptj"])
def test_fields_without_a_value_are_tried(name, tmp_path):
    """The MLP is four times as wide as the model where the config says nothing, but it may say how wide."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
    sizes = {"gpt2": {"n_positions": 64}, "gpt_neo": {"attention_types": [[["global", "local"], 1]]}}
    config = AutoConfig.for_model(name, **small, **sizes.get(name, {}), bos_token_id=1, eos_token_id=2)
    if name == "gptj":
        config.rotary_dim = 4
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    graph = trace(model)
    groups = graph.select(role="mlp.channel").groups
    assert {group.size for group in groups} == {128}
    reshape(model, PrunePlan.remove(graph, {group.name: range(3, 35) for group in groups}), graph)
    assert history_of(model).stock, history_of(model).why_not
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(stock(tokens()).logits, model(tokens()).logits)
