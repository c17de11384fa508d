"""Hooks that come and go act on compiled models, too."""

import pytest
import torch

import graphprune as gp
from graphprune.compiled import is_compiled, launched_compiled
from graphprune.observe import Observer
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec
from tests.decoders import tiny, tokens


@pytest.fixture(autouse=True)
def clean():
    yield
    torch.compiler.reset()


def test_whether_a_model_is_compiled(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert not is_compiled(model)
    assert is_compiled(torch.compile(model, backend="eager"))
    assert not is_compiled(model), "what is around it cannot be seen from inside"
    model[0].compile(backend="eager")
    assert is_compiled(model)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert not launched_compiled()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert launched_compiled()


@pytest.mark.parametrize("inside", [False, True])
def test_masks_act_and_go_again(inside):
    model = tiny("llama")
    graph = gp.trace(model)
    plan = PrunePlan.remove(graph, {"model.layers.1.mlp/mlp.channel": range(30)})
    with torch.no_grad():
        whole = model(tokens()).logits
        with gp.masked(model, plan, graph):
            expected = model(tokens()).logits
    if inside:
        model.model.layers[1].compile(backend="eager")
    compiled = model if inside else torch.compile(model, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            assert (compiled(tokens()).logits - whole).abs().max() < 1e-6
            with gp.masked(compiled, plan, graph):
                assert (compiled(tokens()).logits - expected).abs().max() < 1e-6


def test_observers_see():
    model = tiny("llama")
    graph = gp.trace(model)
    spec = PruneSpec.model_validate({"targets": [{"role": "mlp.channel", "count": 1}], "criterion": "wanda"})
    criterion = spec.criterion.build()
    compiled = torch.compile(model, backend="eager")
    group, found = graph.by_name["model.layers.1.mlp/mlp.channel"], []
    for network in (model, compiled):
        with torch.no_grad():
            network(tokens())  # compiled before the observer comes
            with Observer(network, graph, [group], criterion.signals) as seen:
                network(tokens())
                found.append(criterion.score(group, seen))
    torch.testing.assert_close(*found)
