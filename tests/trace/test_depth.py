"""Layers with two streams: both are handed on where a layer goes, or no layer may go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphprune as gp


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(10, 14), nn.Linear(14, 10)

    def forward(self, h, g):
        return h + self.down(torch.relu(self.up(h))), None if g is None else g + self.down(torch.relu(self.up(g + h)))


class Crossed(Layer):
    """What one layer hands out first, the next one takes second."""


class Narrow(Layer):
    """The second stream is no stream: each layer makes it anew, from another width."""

    def __init__(self):
        super().__init__()
        self.side = nn.Linear(10, 10)

    def forward(self, h, g):
        h, _ = super().forward(h, None)
        return h + g, self.side(h)[..., None]


class Streams(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embed, self.query = nn.Embedding(20, 10), nn.Parameter(torch.randn(10))
        self.layers = nn.ModuleList(layer() for _ in range(4))
        self.head = nn.Linear(10, 11)

    def forward(self, input_ids, mapping=None):
        h = self.embed(input_ids)
        g = None if mapping is None else mapping[..., None] * self.query
        for layer in self.layers:
            h, g = layer(h, g)
            h, g = (g, h) if isinstance(layer, Crossed) else (h, g)
            g = g.squeeze(-1) if g is not None and g.ndim > h.ndim else g
        return self.head(h if g is None else g)


@torch.no_grad()
def test_a_second_stream_is_handed_on_too():
    torch.manual_seed(0)
    model, ids = Streams(Layer).eval(), torch.arange(6)[None]
    both = {"input_ids": ids, "mapping": torch.rand(1, 6)}
    graph = gp.trace(model, example_inputs=[{"input_ids": ids}, both])
    (group,) = graph.select(role="layer")
    assert group.frozen is None and [(s.argument, s.output) for s in group.sites] == [("0", "0"), ("1", "1")]
    plan = gp.PrunePlan.remove(graph, {group.name: [0, 3]})
    with gp.masked(model, plan, graph):
        masked = [model(ids), model(**both)]
    small = gp.reshape(model, plan, graph)
    assert torch.equal(small(ids), masked[0]) and torch.equal(small(**both), masked[1])


@pytest.mark.parametrize("layer", [Crossed, Narrow])
def test_what_is_no_second_stream_keeps_the_layers(layer):
    both = {"input_ids": torch.arange(6)[None], "mapping": torch.rand(1, 6)}
    group = gp.trace(Streams(layer), example_inputs=both).by_name["layers/layer"]
    assert group.frozen
