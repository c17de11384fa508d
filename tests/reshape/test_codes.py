"""8-bit layers are cut as codes, exactly; 4-bit ones by whole blocks."""

from __future__ import annotations

import copy

import pytest
import torch

from graphprune.engine.adapters import attach
from graphprune.errors import ReshapeError
from graphprune.graph import Axis, Block
from graphprune.masking import masked
from graphprune.packed import packed_in
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.codes import cut_codes, encoded, scattered, uncuttable
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


FOUR_BITS = [
    ("nf4", {}),
    ("nf4-double", {}),
    ("nf4-double", {"quant_type": "fp4"}),
    ("nf4", {"blocksize": 128}),
    ("nf4-double", {"quant_storage": torch.float32}),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("kind", "options"), FOUR_BITS)
def test_rows_and_whole_blocks_of_4_bit_codes(kind, options, transposed):
    layer = linear(kind, torch.randn(24, 384), transposed=transposed, **options)
    whole = packed_in(layer).whole().clone()
    out, into = (1, 0) if transposed else (0, 1)
    kept = {out: torch.tensor([0, 3, 4, 9]), into: torch.cat([torch.arange(128), torch.arange(256, 384)])}
    assert uncuttable(packed_in(layer), kept) == ""
    storage = layer.weight.dtype
    layer.weight, layer.bias = cut_codes(packed_in(layer), kept), None
    expected = whole.index_select(0, kept[0]).index_select(1, kept[1])
    for found in (layer, copy.deepcopy(layer)):
        assert torch.equal(packed_in(found).whole(), expected)
        x = torch.randn(2, 256, requires_grad=True)
        stored = expected.t() if transposed else expected
        assert torch.allclose(found.train()(x), torch.nn.functional.linear(x, stored), atol=1e-5)
    assert layer.weight.dtype == storage and layer.quant_state is layer.weight.quant_state
    again = cut_codes(packed_in(layer), {out: torch.tensor([1, 3])})
    layer.weight = again
    assert torch.equal(packed_in(layer).whole(), expected.index_select(out, torch.tensor([1, 3])))


@pytest.mark.parametrize("transposed", [False, True])
def test_other_parts_of_4_bit_codes_are_coded_anew(transposed):
    weight = torch.randn(24, 128)
    layer = linear("nf4-double", weight, transposed=transposed)
    into = 0 if transposed else 1
    kept = torch.arange(0, 128, 2)
    assert "by blocks of 64 inputs cannot be cut exactly" in uncuttable(packed_in(layer), {into: kept})
    whole = packed_in(layer).whole().clone()
    layer.weight = cut_codes(packed_in(layer), {into: kept})
    found = packed_in(layer).whole()
    before = whole.index_select(into, kept)
    assert 0 < (found - before).norm() < 0.15 * before.norm()
    original = weight.t() if transposed else weight
    layer.weight = encoded(packed_in(layer), original.index_select(into, kept))
    anew = packed_in(layer).whole()
    assert anew.shape == found.shape
    error, first = ((w - original.index_select(into, kept)).norm() for w in (anew, found))
    assert error < first  # of one coding, not two


@pytest.mark.parametrize(
    ("unit", "columns", "dim", "expected"),
    [
        (1, 128, 0, False),
        (1, 96, 0, True),
        (1, 128, 1, True),
        (32, 256, 1, True),
        (64, 256, 1, False),
        (128, 256, 1, False),
    ],
)
def test_units_that_are_scattered_over_blocks(unit, columns, dim, expected):
    length = columns if dim else 24
    blocks = (Block(start=0, unit_stride=unit, loops=((unit, 1),) if unit > 1 else ()),)
    axis = Axis(size=length // unit, length=length, blocks=blocks)
    for transposed in (False, True):
        layer = linear("nf4", torch.randn(24, columns), transposed=transposed)
        assert scattered(packed_in(layer), 1 - dim if transposed else dim, axis) == expected
        assert not scattered(packed_in(linear("int8", torch.randn(24, columns))), dim, axis)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_a_4_bit_model_without_whole_blocks_is_the_masked_one(kind, tmp_path):
    sizes = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = load("llama", kind, tmp_path, **sizes)[0].train()
    graph = trace(model)
    groups = graph.select(role="attention.group")
    plan = PrunePlan.remove(graph, {g.name: [0] for g in groups})
    with torch.no_grad():
        with masked(model, plan, graph):
            expected = model(tokens()).logits
        small = reshape(model, plan, graph)
        assert torch.allclose(small(tokens()).logits, expected, rtol=0, atol=2e-6)
    layer = small.model.layers[0].self_attn
    assert (layer.o_proj.in_features, layer.q_proj.out_features, layer.q_proj.in_features) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_scattered_units_of_4_bit_layers_are_refused_and_untouched(kind, tmp_path):
    model = load("llama", kind, tmp_path)[0]
    graph = trace(model)
    before = {n: tuple(p.shape) for n, p in model.named_parameters()}
    plan = PrunePlan.remove(graph, {"model.layers.0.mlp/mlp.channel": [1]})
    with pytest.raises(ReshapeError, match=r"quantised \(nf4\), and codes that share a scale .* cannot be cut exactly"):
        reshape(model, plan, graph)
    assert before == {n: tuple(p.shape) for n, p in model.named_parameters()}
