"""8-bit layers are cut as codes, exactly; 4-bit ones are refused."""

from __future__ import annotations

import copy

import pytest
import torch

from graphprune.engine.adapters import attach
from graphprune.errors import ReshapeError
from graphprune.masking import masked
from graphprune.packed import packed_in
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.codes import cut_codes
from graphprune.schema import Lora
from graphprune.trace import trace
from tests.decoders import tokens
from tests.quantised import linear, load


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_and_columns_of_codes(transposed, used):
    layer = linear("int8", torch.randn(16, 24), transposed=transposed)
    whole = packed_in(layer).whole()
    if used:  # codes and scales have moved to the layer's state
        layer(torch.randn(2, 24))
    kept = {0: torch.tensor([0, 3, 9]), 1: torch.tensor([1, 2, 7, 15])}
    layer.weight = cut_codes(packed_in(layer), kept)
    assert torch.equal(packed_in(layer).whole(), whole[kept[0]][:, kept[1]])
    assert layer.weight.dtype == torch.int8 and layer.state.CB is None


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cut_8_bit_model_is_the_masked_one(name, adapted, mode, tmp_path):
    """Bit by bit in evaluation, too, where inputs are quantised by their largest entry: zeros never are."""
    model = load(name, "int8", tmp_path)[0]
    graph = trace(model)
    groups = graph.select(role=["attention.group", "mlp.channel"])
    if adapted:
        model = attach(model, graph, groups, Lora(dropout=0.0))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=0.1)
    model.train(mode)
    plan = PrunePlan.remove(graph, {g.name: [0, 2] for g in groups})
    with torch.no_grad():
        model(tokens())
        with masked(model, plan, graph):
            expected = model(tokens()).logits
        small = reshape(model, plan, graph)
        assert torch.allclose(small(tokens()).logits, expected, rtol=0, atol=2e-6)
        assert torch.allclose(copy.deepcopy(small)(tokens()).logits, expected, rtol=0, atol=2e-6)
    layer = next(m for m in small.modules() if packed_in(m) is not None and m.out_features == m.weight.shape[0])
    assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)
    loss = small(tokens(), labels=tokens()).loss
    if adapted:
        loss.backward()
        assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_4_bit_layers_are_refused_and_untouched(kind, tmp_path):
    model = load("llama", kind, tmp_path)[0]
    graph = trace(model)
    before = {n: tuple(p.shape) for n, p in model.named_parameters()}
    plan = PrunePlan.remove(graph, {"model.layers.0.mlp/mlp.channel": [1]})
    with pytest.raises(ReshapeError, match=r"quantised \(nf4\), and codes that share a scale .* cannot be cut exactly"):
        reshape(model, plan, graph)
    assert before == {n: tuple(p.shape) for n, p in model.named_parameters()}
