"""Gradients under a mask, on a network small enough to know them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.prove.liveness import liveness, unlearnable
from tests.decoders import tiny, tokens


def plan_for(graph, role):
    return gp.PrunePlan.remove(graph, {g.name: [0] for g in graph.select(role=role)})


@pytest.mark.parametrize("role", ["attention.query", "attention.group", "moe.expert", "moe.channel", "hidden"])
def test_nothing_reaches_what_is_silent(role):
    model = tiny("mixtral")
    graph = gp.trace(model)
    units = {g.name: range(g.multiple_of) for g in graph.select(role=role)}
    assert units
    seen = liveness(model, graph, gp.PrunePlan.remove(graph, units), {"input_ids": tokens()}, 0)
    assert seen.alive == () and seen.unreached == ()


def test_frozen_parameters_stay_frozen_and_have_no_gradient():
    model = tiny("llama").requires_grad_(False)
    graph = gp.trace(model)
    seen = liveness(model, graph, plan_for(graph, "mlp.channel"), {"input_ids": tokens()}, 0)
    assert seen.alive == () and seen.unreached == ()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_groups_that_no_gradient_reaches_are_named():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].mlp.up_proj.weight.zero_()
    graph = gp.trace(model)
    seen = liveness(model, graph, plan_for(graph, "mlp.channel"), {"input_ids": tokens()}, 0)
    assert seen.unreached == ("model.layers.1.mlp/mlp.channel",)


def test_a_model_without_backward_says_why():
    class Refuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            assert not torch.is_grad_enabled(), "only without gradients"
            return self.layer(x)

    assert unlearnable(Refuses(), {"x": torch.ones(2, 3)}) == "AssertionError: only without gradients"
    assert unlearnable(nn.Linear(3, 3), {"input": torch.ones(2, 3)}) is None
