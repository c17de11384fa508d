"""The main stack: what outside of it counts its layers, and lists over which they are spread."""

import torch
from torch import nn

import graphprune as gp
from graphprune.trace import trace

WIDTH = 10
IDS = torch.arange(10).reshape(2, 5)


def layers(model):
    graph = trace(model, example_inputs={"input_ids": IDS})
    (group,) = graph.select(role="layer", frozen=None)
    return graph, group


class Mixing(nn.Module):
    """One part of a layer."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.inner(x).tanh()


class Spread(nn.Module):
    """Layers whose parts lie in three lists; the norm at the end of each comes after the sum."""

    def __init__(self, count=4):
        super().__init__()
        self.num_layers = count
        self.embed = nn.Embedding(17, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(count))
        self.wide = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 14), nn.Linear(14, WIDTH)) for _ in range(count))
        self.mixers = nn.ModuleList(Mixing(i) for i in range(count))
        self.head = nn.Linear(WIDTH, 17)

    def layer(self, i, x):
        x = x + self.mixers[i](x)
        return self.norms[i](x + self.wide[i](x))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for i in range(self.num_layers):
            x = self.layer(i, x)
        return {"logits": self.head(x)}


@torch.no_grad()
def test_layers_that_are_spread_over_lists_go_with_all_their_parts():
    torch.manual_seed(0)
    model = Spread().eval()
    graph, group = layers(model)
    assert group.frozen is None
    assert [s.path for s in group.stacks] == ["mixers", "wide", "norms"]
    assert {m.tensor.split(".")[0] for m in group.members if m.only == 2} == {"mixers", "wide", "norms"}
    assert [g.layer for g in graph.select(role="mlp.channel") if g.size == 14] == [0, 1, 2, 3]
    plan = gp.PrunePlan.remove(graph, {group.name: [0, 2]})
    with gp.masked(model, plan, graph):
        masked = model(IDS)["logits"]
    assert (masked - model(IDS)["logits"]).abs().max() > 1e-3
    small = gp.reshape(model, plan, graph)
    torch.testing.assert_close(small(IDS)["logits"], masked)
    assert (small.num_layers, len(small.norms), [m.number for m in small.mixers]) == (2, 2, [0, 1])


def test_lists_that_do_not_run_in_turns_keep_their_entries():
    class Apart(Spread):
        def forward(self, input_ids):
            x = self.embed(input_ids)
            for mixer in self.mixers:
                x = x + mixer(x)
            for wide, norm in zip(self.wide, self.norms, strict=True):
                x = norm(x + wide(x))
            return {"logits": self.head(x)}

    _, group = layers(Apart())
    assert group.frozen is not None
    assert group.frozen.endswith("they would have to go together, but do not run in turns")
