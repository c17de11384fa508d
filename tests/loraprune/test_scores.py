"""Eq. 3, 4 and 10 on real models with PEFT's adapters, against full matrices in float64.

Forward and backward go through a bare copy of the model whose weights are W + ΔW, with ΔW as PEFT makes it of its
factors. The surrogate is Eq. 7, literally: the change of B·A in one step of gradient descent on A and B.
"""

import copy

import peft
import pytest
import torch
from torch.func import functional_call

import graphprune as gp
from graphprune.schema import PruneSpec
from graphprune.score import score
from tests.decoders import tiny, tokens
from tests.loraprune.formulas import FORMULAS, OWNERS, taylor

RANK, ALPHA = 3, 7
#: The scaling of the update, by use_rslora.
SCALING = {False: ALPHA / RANK, True: ALPHA / RANK**0.5}
BATCH = {"input_ids": tokens(batch=3), "labels": tokens(batch=3)}


def of_layer(name):
    """All matrices of the groups of a model."""
    return list(dict.fromkeys(tensor for owners in OWNERS[name].values() for tensor in owners))


def adapted(model, tensors, rslora, **options):
    """``model`` in float64 with random adapters on ``tensors``, B non-zero."""
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        use_rslora=rslora,
        target_modules=layers,
        target_parameters=[name for name in tensors if not name.endswith(".weight")] or None,
        fan_in_fan_out=hasattr(model, "transformer") and "c_attn" in str(tensors),
        **options,
    )
    wrapped = peft.get_peft_model(model, config).double()
    torch.manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.eval()


def adapters(wrapped, tensors):
    """PEFT's layer for each tensor."""
    found = {}
    for name in tensors:
        path, _, leaf = name.rpartition(".")
        layer = wrapped.get_base_model().get_submodule(path)
        while getattr(layer, "parameter_name", "weight") != leaf:
            layer = layer.base_layer
        found[name] = layer
    return found


def by_hand(bare, wrapped, tensors, scaling):
    """∂B·A + B·∂A − ∂B·∂A and W + s·B·A of every tensor."""
    layers = adapters(wrapped, tensors)
    weights = dict(bare.named_parameters())
    updates = {name: layer.get_delta_weight("default") for name, layer in layers.items()}
    merged = {name: weights[name].detach() + update for name, update in updates.items()}
    loss = functional_call(bare, merged, kwargs=BATCH).loss
    factors = [p for n, p in wrapped.named_parameters() if "lora_" in n]
    gradients = torch.autograd.grad(loss, factors)
    with torch.no_grad():
        for factor, gradient in zip(factors, gradients, strict=True):
            factor -= gradient
        stepped = {name: layer.get_delta_weight("default") for name, layer in layers.items()}
        for factor, gradient in zip(factors, gradients, strict=True):
            factor += gradient
    surrogate = {name: (updates[name].detach() - stepped[name]) / scaling for name in tensors}
    return surrogate, {name: value.detach() for name, value in merged.items()}


def spec_of(groups, criterion):
    targets = [{"name": name, "count": 1} for name in groups]
    return PruneSpec.model_validate({"targets": targets, "criterion": criterion})


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", OWNERS)
def test_equations_10_and_4(name, rslora, variant):
    model = tiny(name).double()
    if name == "mixtral":
        model.set_experts_implementation("eager")  # the others do not know float64
    graph, bare, tensors = gp.trace(model), copy.deepcopy(model), of_layer(name)
    wrapped = adapted(model, tensors, rslora)
    surrogate, merged = by_hand(bare, wrapped, tensors, SCALING[rslora])
    assert all(value.abs().max() > 0 for value in surrogate.values())
    for group, owners in OWNERS[name].items():  # one at a time: some share their matrices
        found = score(wrapped, graph, spec_of([group], {"name": "lora", "variant": variant}), [BATCH])[group]
        expected = FORMULAS[variant](surrogate, merged, owners, graph.by_name[group].size)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)


def test_matrices_without_an_adapter_contribute_nothing():
    model = tiny("llama").double()
    graph, bare = gp.trace(model), copy.deepcopy(model)
    tensors = [name for name in of_layer("llama") if name.endswith(("q_proj.weight", "down_proj.weight"))]
    wrapped = adapted(model, tensors, rslora=False)
    surrogate, merged = by_hand(bare, wrapped, tensors, SCALING[False])
    for group, owners in OWNERS["llama"].items():
        found = score(wrapped, graph, spec_of([group], "lora"), [BATCH])[group]
        expected = FORMULAS["paper"](surrogate, merged, owners, graph.by_name[group].size)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["llama", "phi3", "falcon-grouped"])
def test_equations_3_and_4(name):
    """The criterion that LoRAPrune approximates; models without biases, so that matrices are all there is."""
    model = tiny(name).double()
    graph = gp.trace(model)
    weights = dict(model.named_parameters())
    gradients = dict(zip(weights, torch.autograd.grad(model(**BATCH).loss, weights.values()), strict=True))
    for group, owners in OWNERS[name].items():
        found = score(model, graph, spec_of([group], {"name": "taylor", "power": 2}), [BATCH])[group]
        expected = taylor(weights, gradients, owners, graph.by_name[group].size)
        torch.testing.assert_close(found, expected.detach().float(), rtol=1e-5, atol=0)
