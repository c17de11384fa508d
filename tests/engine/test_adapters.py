import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from graphprune.engine.adapters import adaptable, attach, merge
from graphprune.errors import SpecError
from graphprune.graph import Block, DependencyGraph, Group, Member
from graphprune.schema import Lora

ONE = (Block(start=0, unit_stride=1),)


def make_graph(model, tensors, role="mlp.channel", tied=None):
    """One group that runs through the given (tensor, dim) pairs."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    members = tuple(
        Member(tensor=name, dim=dim, size=shapes[name][dim], length=shapes[name][dim], blocks=ONE)
        for name, dim in tensors
    )
    group = Group(name=f"0/{role}", role=role, layer=0, size=members[0].size, members=members)
    return DependencyGraph(groups=(group,), shapes=shapes, tied=tied or {})


@pytest.fixture
def llama():
    config = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(**config, vocab_size=31)).eval()


def mlp(layer):
    prefix = f"model.layers.{layer}.mlp."
    return [
        (prefix + "gate_proj.weight", 0),
        (prefix + "up_proj.weight", 0),
        (prefix + "down_proj.weight", 1),
    ]


def adapted(model):
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}


def test_exactly_the_linear_layers_of_the_groups_are_adapted(llama):
    graph = make_graph(llama, mlp(1))
    model = attach(llama, graph, graph.groups, Lora(r=2))
    assert isinstance(model, PeftModel)
    # layers.11 ends in the same letters as layers.1 and is left alone
    prefix = "base_model.model.model.layers.1.mlp."
    assert adapted(model) == {prefix + "gate_proj", prefix + "up_proj", prefix + "down_proj"}
    assert all(("lora_" in n) == p.requires_grad for n, p in model.named_parameters())


def test_options_reach_the_adapters(llama):
    graph = make_graph(llama, mlp(0))
    model = attach(llama, graph, graph.groups, Lora(r=4, alpha=8, dropout=0.25, use_rslora=True))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert layer.lora_A["default"].weight.shape == (4, 16)
    assert layer.scaling["default"] == 8 / 4**0.5
    assert layer.lora_dropout["default"].p == 0.25


def test_merging_changes_no_output_and_leaves_a_plain_model(llama):
    graph = make_graph(llama, mlp(3))
    ids = torch.arange(8)[None]
    names = [name for name, _ in llama.named_parameters()]
    model = attach(llama, graph, graph.groups, Lora(r=2)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    with torch.no_grad():
        before = model(ids).logits
        merged = merge(model)
        assert (merged(ids).logits - before).abs().max() < 1e-5
    assert [name for name, _ in merged.named_parameters()] == names
    assert all(p.requires_grad for p in merged.parameters())


def test_transposed_layers_are_adapted():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=31, n_positions=16)
    model = GPT2LMHeadModel(config).eval()
    graph = make_graph(model, [("transformer.h.0.mlp.c_fc.weight", 1), ("transformer.h.0.mlp.c_fc.bias", 0)])
    wrapped = attach(model, graph, graph.groups, Lora(r=2)).eval()
    layer = wrapped.base_model.model.transformer.h[0].mlp.c_fc
    nn.init.normal_(layer.lora_B["default"].weight)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = wrapped(ids).logits
        assert (merge(wrapped)(ids).logits - before).abs().max() < 1e-5


def test_weights_without_a_linear_layer_are_named_and_left(llama):
    tensors = [("model.embed_tokens.weight", 1), ("model.norm.weight", 0), ("lm_head.weight", 1), *mlp(0)[:1]]
    graph = make_graph(llama, tensors, "hidden", tied={"lm_head.weight": "model.embed_tokens.weight"})
    found = adaptable(llama, graph, graph.groups, Lora())
    assert found.modules == ("model.layers.0.mlp.gate_proj",)
    assert found.stacks == ()
    assert found.left == ("model.embed_tokens.weight", "lm_head.weight")


def test_stacked_expert_weights_are_adapted_without_dropout(caplog):
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**config, intermediate_size=12, num_local_experts=4, vocab_size=31))
    prefix = "model.layers.0.mlp."
    tensors = [(prefix + "gate.weight", 0), (prefix + "experts.gate_up_proj", 0), (prefix + "experts.down_proj", 0)]
    graph = make_graph(model, tensors, "moe.expert")
    found = adaptable(model, graph, graph.groups, Lora())
    assert found.modules == ()
    assert found.stacks == (prefix + "experts.gate_up_proj", prefix + "experts.down_proj")
    assert found.left == (prefix + "gate.weight",)
    caplog.set_level("INFO")
    wrapped = attach(model.eval(), graph, graph.groups, Lora(r=2)).eval()
    assert "lora.dropout 0.05 is left out" in caplog.text
    factors = [p for n, p in wrapped.named_parameters() if "lora_B" in n]
    assert len(factors) == 2
    for factor in factors:
        nn.init.normal_(factor, std=0.1)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = wrapped(ids).logits
        assert (merge(wrapped)(ids).logits - before).abs().max() < 1e-5


def test_target_modules_replace_the_choice(llama):
    graph = make_graph(llama, mlp(0))
    modules = adaptable(llama, graph, graph.groups, Lora(target_modules=("o_proj", "1.mlp.up_proj"))).modules
    assert len(modules) == 13
    assert "model.layers.1.mlp.up_proj" in modules
    assert "model.layers.11.mlp.up_proj" not in modules


def test_nothing_to_adapt_is_an_error(llama):
    graph = make_graph(llama, [("model.embed_tokens.weight", 0)], "vocab")
    with pytest.raises(SpecError, match=r"cut no linear layer .*\(model\.embed_tokens\.weight"):
        attach(llama, graph, graph.groups, Lora())
    with pytest.raises(SpecError, match=r"lora\.target_modules: .* got q, rojection, which end none"):
        attach(llama, graph, graph.groups, Lora(target_modules=("q", "rojection")))


def test_a_layer_whose_weight_is_tied_is_not_adapted_by_name(llama):
    graph = make_graph(llama, mlp(0), tied={"lm_head.weight": "model.embed_tokens.weight"})
    with pytest.raises(SpecError, match=r"got 'lm_head', whose weight is tied to another's: merged"):
        attach(llama, graph, graph.groups, Lora(r=2, target_modules=("q_proj", "lm_head")))
    assert not any("lora" in name for name, _ in llama.named_parameters())
