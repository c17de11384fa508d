"""A method of a submodule reads the config while another module runs: both must see what pruning makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import graphprune as gp


class Bias(nn.Module):
    """Never called itself: only its method is."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def slope(self, x):
        return torch.zeros(1, self.config.heads, x.shape[1], x.shape[1], device=x.device)


class Reading(Bias):
    """Its own forward reads the number too, for something that no unit of the attention runs through."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.full((8, 3), 0.5))

    def forward(self, x):
        return x * self.scale.view(self.config.heads, 3).mean()


class Attention(nn.Module):
    def __init__(self, config, bias):
        super().__init__()
        self.config, self.bias = config, bias(config)
        self.q, self.k, self.v = (nn.Linear(10, 24) for _ in range(3))
        self.o = nn.Linear(24, 10)

    def forward(self, x):
        if isinstance(self.bias, Reading):
            x = self.bias(x)
            slope = 0.0
        else:
            slope = self.bias.slope(x)
        q, k, v = (f(x).view(1, x.shape[1], self.config.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) + slope).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.config = SimpleNamespace(heads=8)
        self.embed = nn.Embedding(20, 10)
        self.layers = nn.ModuleList(Attention(self.config, bias) for _ in range(3))
        self.head = nn.Linear(10, 11)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


@pytest.mark.parametrize("bias", [Bias, Reading])
@torch.no_grad()
def test_the_submodule_sees_what_its_caller_sees(bias):
    torch.manual_seed(0)
    model, ids = Decoder(bias).eval(), torch.arange(6)[None]
    graph = gp.trace(model, example_inputs={"input_ids": ids})
    name = "layers.1/attention.group"
    plan = gp.PrunePlan.remove(graph, {name: [1, 5]})
    with gp.masked(model, plan, graph):
        masked = model(ids)
    small = gp.reshape(model, plan, graph)
    assert torch.allclose(small(ids), masked, atol=1e-6)
    assert [layer.config.heads for layer in small.layers] == [8, 6, 8] and small.config.heads == 8
    assert small.layers[1].bias.config.heads == (6 if bias is Bias else 8)
