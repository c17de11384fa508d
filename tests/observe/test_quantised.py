"""Observations of quantised layers: what criteria see is what the layer computes with."""

from __future__ import annotations

import pytest
import torch

from graphprune.criterion_spec import CriterionSpec
from graphprune.errors import CriterionError
from graphprune.observe import Observer
from graphprune.observe.factors import base_shape, base_weight, lora_factors
from graphprune.packed import packed
from graphprune.schema import PruneSpec
from graphprune.score import score
from graphprune.trace import trace
from tests.decoders import tokens
from tests.quantised import load

UP = {"llama": "model.layers.1.mlp.up_proj.weight", "gpt2": "transformer.h.1.mlp.c_fc.weight"}


@pytest.fixture(params=["int8", "nf4-double"])
def kind(request):
    return request.param


@pytest.fixture(params=["llama", "gpt2"])
def name(request):
    return request.param


def spec(criterion):
    targets = [{"role": ["attention.group", "mlp.channel"], "ratio": 0.5}]
    return PruneSpec.model_validate({"targets": targets, "criterion": criterion, "lora": {"dropout": 0.0}})


def batches():
    return [{"input_ids": tokens(2)}, {"input_ids": tokens(3)}]


def test_weights_rows_and_shapes(name, kind, tmp_path):
    model, twin = load(name, kind, tmp_path)
    expected = twin.get_parameter(UP[name])
    graph = trace(model)
    with Observer(model, graph, graph.select(role="mlp.channel"), ()) as seen:
        assert seen.shape(UP[name]) == expected.shape == graph.shapes[UP[name]]
        assert torch.equal(seen.weight(UP[name]).float(), expected)
        assert torch.equal(seen.weight_rows(UP[name], 5, 9).float(), expected[5:9])


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "lora", "gate", "random"])
def test_scores_are_those_of_the_dequantised_twin(name, kind, criterion, tmp_path):
    model, twin = load(name, kind, tmp_path)
    graph = trace(twin)
    found, expected = (score(m, graph, spec(criterion), batches()) for m in (model, twin))
    # In evaluation 8-bit layers quantise activations too: 1 in 127, several layers deep.
    rough = kind == "int8" and criterion not in ("magnitude", "random")
    for group, scores in expected.items():
        assert torch.allclose(found[group], scores, rtol=1e-4, atol=0.05 * scores.max() if rough else 1e-7), group


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "lora"])
def test_no_weight_is_ever_dequantised_whole(kind, criterion, tmp_path, monkeypatch):
    model, twin = load("llama", kind, tmp_path)

    def refuse(model, tensor):
        if packed(model, tensor) is not None:
            raise AssertionError(f"all of {tensor} was dequantised")
        return base_weight(model, tensor)

    monkeypatch.setattr("graphprune.observe.observer.base_weight", refuse)
    assert score(model, trace(twin), spec(criterion), batches())


@pytest.mark.parametrize("criterion", ["taylor", {"name": "taylor", "order": "second"}])
def test_gradients_of_codes_are_refused_before_anything_runs(kind, criterion, tmp_path):
    model, twin = load("llama", kind, tmp_path)
    model.forward = None
    with pytest.raises(CriterionError, match=r"needs gradients of weights, and 21 of the 21 tensors .* Choose lora"):
        score(model, trace(twin), spec(criterion), batches())


def test_biases_and_norms_of_a_quantised_model_have_gradients(kind, tmp_path):
    """What is not quantised can be scored by any criterion: here the hidden size of a norm alone."""
    model, twin = load("llama", kind, tmp_path)
    graph = trace(twin)
    group = graph.select(role="mlp.channel").groups[0]
    norm = group.model_copy(
        update={"members": (group.members[0].model_copy(update={"tensor": "model.norm.weight", "dim": 0}),)}
    )
    assert Observer(model, graph, [norm], CriterionSpec(name="taylor").build().signals)


def test_adapters_on_a_layer_in_the_place_of_a_transposed_one(kind, tmp_path):
    from graphprune.engine.adapters import attach

    model, twin = load("gpt2", kind, tmp_path)
    graph = trace(twin)
    for m in (model, twin):
        wrapped = attach(m, graph, graph.select(role="mlp.channel"), spec("lora").lora)
        factors = lora_factors(wrapped, UP["gpt2"])
        assert factors.transposed and base_shape(wrapped, UP["gpt2"]) == (64, 128)
        assert (factors.a.shape[-1], factors.b.shape[0]) == (64, 128)
