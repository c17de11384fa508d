"""A model that is cut bit by bit ends as one that was cut at once."""

import copy
import weakref

import pytest
import torch

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.reshape.further import cut_further, outstanding
from graphprune.reshape.history import history_of
from graphprune.testing import tiny_model
from graphprune.testing.models import example_inputs
from graphprune.trace import trace

WIDTHS = {"model.layers.1.mlp/mlp.channel": [1, 4], "model.layers.0.self_attn/attention.group": [0]}
WHOLE = {**WIDTHS, "model.layers.1.mlp/mlp.channel": [0, 1, 4, 7], "model.layers.2.mlp/mlp.channel": [3]}


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def graph(model):
    return trace(model)


def logits(model):
    with torch.no_grad():
        return model(**example_inputs(model)).logits


@pytest.mark.parametrize("layer", [[], [0]], ids=["widths", "layer"])
def test_bit_by_bit_is_at_once(layer, model, graph):
    depth = next(g.name for g in graph.groups if g.role == "layer")
    first = gp.PrunePlan.remove(graph, {**WIDTHS, depth: layer})
    whole = gp.PrunePlan.remove(graph, {**WHOLE, depth: layer})
    at_once = gp.reshape(copy.deepcopy(model), whole, graph)
    cut_further(model, graph, first, more=True)
    with gp.masked(model, whole, graph):
        torch.testing.assert_close(logits(model), logits(at_once), rtol=1e-4, atol=1e-5)
    small = gp.reshape(model, whole)  # the model remembers the graph
    torch.testing.assert_close(logits(small), logits(at_once), rtol=1e-4, atol=1e-5)
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in at_once.named_parameters()}
    assert history_of(small).steps == history_of(at_once).steps
    assert history_of(small).underway is None
    assert small.config.to_dict() == at_once.config.to_dict()


def test_a_norm_is_scaled_as_at_once():
    model = tiny_model("llama")
    graph = trace(model)
    hidden = next(g for g in graph.groups if g.role == "hidden")
    whole = gp.PrunePlan.remove(graph, {hidden.name: range(0, hidden.size, 2)})
    at_once = gp.reshape(copy.deepcopy(model), whole, graph)
    for units in (range(0, hidden.size // 2, 2), range(0, hidden.size, 2)):
        cut_further(model, graph, gp.PrunePlan.remove(graph, {hidden.name: units}), more=True)
    torch.testing.assert_close(model.model.norm.weight, at_once.model.norm.weight)
    assert gp.reshape(model, whole).model.norm.variance_epsilon == at_once.model.norm.variance_epsilon
    torch.testing.assert_close(logits(model), logits(at_once), rtol=1e-4, atol=1e-5)


def test_what_is_gone_cannot_be_kept(model, graph):
    cut_further(model, graph, gp.PrunePlan.remove(graph, WHOLE), more=True)
    with pytest.raises(PlanError, match=r"has lost unit 0 of group 'model\.layers\.1\.mlp/mlp\.channel' already"):
        outstanding(model, graph, gp.PrunePlan.remove(graph, WIDTHS))


def test_a_finished_pruning_is_not_gone_on_with(model, graph):
    plan = gp.PrunePlan.remove(graph, WIDTHS)
    gp.reshape(model, plan, graph)
    with pytest.raises(gp.GraphPruneError):
        gp.reshape(model, plan, graph)


def test_old_tensors_are_let_go_one_by_one(model, graph):
    alive, seen = [], []
    before = [weakref.ref(p) for p in model.parameters()]
    count = sum(m.only is None for name in WIDTHS for m in graph.by_name[name].members)

    def follow(replaced):
        seen.append(replaced.new.shape)
        alive.append(sum(ref() is not None for ref in before))

    cut_further(model, graph, gp.PrunePlan.remove(graph, WIDTHS), follow=follow)
    assert len(seen) == count
    assert alive == list(range(len(before), len(before) - count, -1))
