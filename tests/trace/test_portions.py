"""Tensors that are divided among the layers."""

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.trace import trace

LAYERS, WIDTH, PORTION = 4, 10, 3


class Config:
    """What a model knows about its sizes."""

    def __init__(self):
        self.num_hidden_layers = LAYERS


class Layer(nn.Module):
    """Adds what the token means to this layer."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, PORTION, bias=False)
        self.up = nn.Linear(PORTION, WIDTH, bias=False)

    def forward(self, x, portion):
        return x + self.up(torch.tanh(self.gate(x)) * portion)


class Divided(nn.Module):
    """One table of a portion per layer, one projection to as much, and a norm over each portion."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.width = PORTION
        self.embed = nn.Embedding(17, WIDTH)
        self.table = nn.Embedding(17, LAYERS * PORTION)
        self.project = nn.Linear(WIDTH, LAYERS * PORTION, bias=False)
        self.norm = nn.LayerNorm(PORTION)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 17, bias=False)

    def portions(self, ids, x):
        shape = (*ids.shape, self.config.num_hidden_layers, self.width)
        return self.norm(self.project(x).reshape(shape)) + self.table(ids).reshape(shape)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        portions = self.portions(input_ids, x)
        for i, layer in enumerate(self.layers):
            x = layer(x, portions[:, :, i, :])
        return {"logits": self.head(x)}


class Unbound(Divided):
    """Takes the portions apart at once."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer, portion in zip(self.layers, self.portions(input_ids, x).unbind(2), strict=True):
            x = layer(x, portion)
        return {"logits": self.head(x)}


class Crossed(Divided):
    """Hands every layer the portion of another one."""

    def portions(self, ids, x):
        return super().portions(ids, x).flip(2)


class Turned(Divided):
    """Reads the portions from the last to the first."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        portions = self.portions(input_ids, x)
        for i, layer in enumerate(self.layers):
            x = layer(x, portions[:, :, LAYERS - 1 - i, :])
        return {"logits": self.head(x)}


class Compared(Divided):
    """Weighs the portions against each other."""

    def portions(self, ids, x):
        return super().portions(ids, x).softmax(2)


class Centred(Divided):
    """Takes off the mean of all portions."""

    def portions(self, ids, x):
        made = super().portions(ids, x)
        return made - made.mean(2, keepdim=True)


IDS = torch.arange(10).reshape(2, 5)


def layer_group(model):
    graph = trace(model, example_inputs={"input_ids": IDS})
    (group,) = graph.select(role="layer", frozen=None)
    return graph, group


@pytest.mark.parametrize("make", [Divided, Unbound])
@torch.no_grad()
def test_the_portion_of_a_layer_goes_with_it(make):
    torch.manual_seed(0)
    model = make().eval()
    graph, group = layer_group(model)
    assert group.frozen is None
    shared = {m.tensor: m.indices(2).tolist() for m in group.members if m.only is None}
    assert shared == {"table.weight": [6, 7, 8], "project.weight": [6, 7, 8]}
    plan = gp.PrunePlan.remove(graph, {group.name: [0, 2]})
    with gp.masked(model, plan, graph):
        masked = model(IDS)["logits"]
    assert (masked - model(IDS)["logits"]).abs().max() > 1e-3
    small = gp.reshape(model, plan, graph)
    torch.testing.assert_close(small(IDS)["logits"], masked)
    assert small.config.num_hidden_layers == 2
    assert small.table.weight.shape == (17, 2 * PORTION) == (17, small.table.embedding_dim)
    assert small.project.out_features == 2 * PORTION


@torch.no_grad()
def test_portions_become_narrower_and_fewer():
    torch.manual_seed(0)
    model = Divided().eval()
    model.norm = nn.Identity()
    graph, group = layer_group(model)
    (width,) = [g for g in graph.groups if g.size == PORTION and g.frozen is None]
    plan = gp.PrunePlan.remove(graph, {group.name: [1], width.name: [0]})
    cut = gp.reshape(model, plan, graph)
    assert cut.table.weight.shape == (17, (LAYERS - 1) * (PORTION - 1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Crossed, "'flip' in the model computes across the portions of the layers"),
        (Turned, "the portion of layer 3 is read by layer 0, in layers.0"),
        (Compared, "'_softmax' in the model computes across the portions of the layers"),
        (Centred, "'mean' in the model computes across the portions of the layers"),
    ],
)
def test_portions_that_do_not_stay_apart_keep_the_layers(make, reason):
    assert layer_group(make())[1].frozen == reason
