"""Masks on the weights of quantised layers."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from graphprune.engine.adapters import attach, trace_without_adapters
from graphprune.graph import Axis, Block, DependencyGraph, Group, MaskSite, Member
from graphprune.masking import Keep, MaskSet, masked
from graphprune.packed import packed_in
from graphprune.packed_masks import mask_packed
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.schema import Lora
from graphprune.trace import trace
from tests.decoders import tokens
from tests.quantised import linear, load

ONE = (Block(start=0, unit_stride=1),)


def keep(size, removed):
    mask = torch.ones(size)
    mask[removed] = 0
    return Keep(Axis(size=size, length=size, blocks=ONE), mask)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["int8", "nf4-double"])
def test_masks_zero_rows_and_columns(kind, transposed, bias):
    layer = linear(kind, torch.randn(32, 64), transposed=transposed).train()
    if not bias:
        layer.bias = None
    x = torch.randn(3, 64, requires_grad=True)
    weight = packed_in(layer).whole().clone()  # in the graph's layout
    outputs, inputs = (1, 0) if transposed else (0, 1)
    handles = [
        mask_packed(packed_in(layer), outputs, keep(32, [1, 30])),
        mask_packed(packed_in(layer), inputs, keep(64, [7])),
    ]
    weight.index_fill_(outputs, torch.tensor([1, 30]), 0)
    weight.index_fill_(inputs, torch.tensor([7]), 0)
    weight = weight.t() if transposed else weight
    expected = nn.functional.linear(x, weight, layer.bias)
    out = layer(x)
    assert torch.allclose(out, expected, atol=1e-5)
    coefficients = torch.randn_like(out)
    gradient = torch.autograd.grad((expected * coefficients).sum(), x)[0]
    assert torch.allclose(torch.autograd.grad((out * coefficients).sum(), x)[0], gradient, atol=1e-5)
    for handle in reversed(handles):
        handle.remove()
        handle.remove()
    assert "forward" not in vars(layer)


def test_masks_come_off_in_any_order_and_spare_a_forward_of_others():
    layer = linear("int8", torch.randn(4, 8))
    own = layer.forward
    vars(layer)["forward"] = own
    first, second = (mask_packed(packed_in(layer), 0, keep(4, [unit])) for unit in (0, 1))
    layer.bias.data.zero_()
    first.remove()
    assert (layer(torch.ones(1, 8))[0] == 0).tolist() == [False, True, False, False]
    second.remove()
    assert vars(layer)["forward"] == own


class Two(nn.Module):
    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_weight_sites_act_on_quantised_layers_biases_and_adapters(kind, adapted):
    """As on ordinary layers, where the parameter itself is multiplied."""
    model = Two(linear(kind, torch.randn(64, 64)), linear(kind, torch.randn(64, 64))).train()
    twin = Two(nn.Linear(64, 64), nn.Linear(64, 64))
    for name in ("up", "down"):
        layer = getattr(model, name)
        getattr(twin, name).weight.data = packed_in(layer).whole().clone()
        getattr(twin, name).bias.data = layer.bias.data.clone()
    members = tuple(
        Member(tensor=tensor, dim=dim, size=64, length=64, blocks=ONE, consumes=dim == 1)
        for tensor, dim in [("up.weight", 0), ("up.bias", 0), ("down.weight", 1)]
    )
    axis = Axis(size=64, length=64, blocks=ONE)
    sites = tuple(MaskSite(kind="weight", module=m.tensor, dim=m.dim, axis=axis) for m in members)
    group = Group(name="c", role="mlp.channel", layer=0, size=64, members=members, sites=sites)
    graph = DependencyGraph(groups=(group,), shapes={"up.weight": (64, 64), "down.weight": (64, 64)}, layers=1)
    models = [model, twin]
    if adapted:
        model.is_loaded_in_8bit, model.is_loaded_in_4bit = kind == "int8", kind == "nf4"  # PEFT asks
        models = [get_peft_model(m, LoraConfig(r=4, target_modules=["up", "down"])) for m in models]
        assert type(models[0].base_model.model.up) is not type(models[1].base_model.model.up)
        for pair in zip(*(list(m.named_parameters()) for m in models), strict=True):
            if "lora_" in pair[0][0]:
                value = torch.randn_like(pair[0][1]) * 0.1
                for _, parameter in pair:
                    parameter.data = value.clone()
    x = torch.randn(5, 64)
    outs = []
    for m in models:
        with MaskSet(m, graph, ["c"]) as masks:
            masks.set("c", [3, 40])
            outs.append(m(x))
        assert not torch.allclose(outs[-1], m(x), atol=1e-3)
    assert torch.allclose(*outs, atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "nf4-double"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_masked_quantised_model_is_its_reshaped_dequantised_twin(name, kind, tmp_path):
    model, twin = load(name, kind, tmp_path)
    graph = trace(model)
    ids = tokens()
    model.train(), twin.train()  # in evaluation the 8-bit layers quantise what they are given, too
    for role in ("attention.group", "mlp.channel"):
        group = next(g for g in graph.groups if g.role == role)
        plan = PrunePlan.remove(graph, {group.name: [0, 2]})
        with torch.no_grad(), masked(model, plan, graph):
            found = model(ids).logits
        with torch.no_grad():
            assert torch.allclose(found, reshape(copy.deepcopy(twin), plan, graph)(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "nf4-double"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_graph_is_the_same_below_adapters(name, kind, tmp_path):
    model, twin = load(name, kind, tmp_path)
    graph = trace(model)
    assert graph == trace(twin)  # gpt2's embeddings are tied
    wrapped = attach(model, graph, graph.select(role="mlp.channel"), Lora())
    assert trace_without_adapters(wrapped) == graph
