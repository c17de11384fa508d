"""Dictionaries with numbers of layers for keys."""

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.trace import trace
from graphprune.trace.lookups import Watched, misunderstood, watched_lookups

WIDTH, IDS = 10, torch.arange(10).reshape(2, 5)


class Adapted(nn.Module):
    """What layers share, with an adapter for some of them."""

    def __init__(self, adapters):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.adapters = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in adapters)
        self.place = {layer: i for i, layer in enumerate(adapters)}
        self.spare = dict(self.place)

    def forward(self, x, number):
        return self.base(x) + self.adapters[self.place[number]](x)


class Layer(nn.Module):
    """Calls what it shares with others by its number, if it does."""

    def __init__(self, shared):
        super().__init__()
        self.shared, self.own = shared, nn.Linear(WIDTH, WIDTH)

    def forward(self, x, number):
        return x + self.own(self.shared(x, number).tanh() if self.shared is not None else x)


class Model(nn.Module):
    """Five layers of which three share a module."""

    def __init__(self, spare=False):
        super().__init__()
        shared = Adapted([1, 2, 4])
        if not spare:
            del shared.spare
        self.embed = nn.Embedding(17, WIDTH)
        self.layers = nn.ModuleList(Layer(shared if i in (1, 2, 4) else None) for i in range(5))
        self.head = nn.Linear(WIDTH, 17)

    def number(self, i):
        return i

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, self.number(i))
        return {"logits": self.head(x)}


def layers(model):
    graph = trace(model, example_inputs={"input_ids": IDS})
    (group,) = graph.select(role="layer", frozen=None)
    return graph, group


@torch.no_grad()
def test_the_keys_follow_the_layers():
    torch.manual_seed(0)
    model = Model().eval()
    graph, group = layers(model)
    assert (group.frozen, type(model.layers[1].shared.place)) == (None, dict)
    plan = gp.PrunePlan.remove(graph, {group.name: [0, 1]})
    with gp.masked(model, plan, graph):
        masked = model(IDS)["logits"]
    assert (masked - model(IDS)["logits"]).abs().max() > 1e-3
    small = gp.reshape(model, plan, graph)
    torch.testing.assert_close(small(IDS)["logits"], masked)
    assert small.layers[0].shared.place == {0: 1, 2: 2}


def test_a_dictionary_that_is_asked_for_other_numbers_keeps_the_layers():
    model = Model()
    model.number = lambda i: {1: 4, 4: 1}.get(i, i)
    assert layers(model)[1].frozen == (
        "'layers.1.shared.place' may look layers up by their numbers, which change when a layer goes, but was not seen "
        "to be asked by each layer for its own"
    )


def test_one_that_nobody_asks_keeps_them_too():
    reason = layers(Model(spare=True))[1].frozen
    assert reason is not None
    assert reason.startswith("'layers.1.shared.spare' may look layers up")


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d[1],
        lambda d: 1 in d,
        lambda d: d.get(1),
        lambda d: list(d),
        lambda d: len(d),
        lambda d: list(d.items()),
        lambda d: list(d.keys()),
        lambda d: list(d.values()),
    ],
)
def test_any_other_question_is_noticed(ask):
    watched = Watched({0: "a", 1: "b"}, lambda: 0)
    ask(watched)
    assert list(misunderstood({("m", "d"): [watched]})) == [("m", "d")]


def test_one_that_nobody_asks_is_believed_where_its_twin_was():
    asked, twin, other = (Watched(keys, lambda: 0) for keys in ({0: "a"}, {0: "a"}, {0: "b"}))
    assert asked[0] == "a"
    lookups = {("m", "d"): [asked], ("n", "d"): [twin], ("o", "d"): [other], ("p", "e"): [twin]}
    assert list(misunderstood(lookups)) == [("o", "d"), ("p", "e")]


def test_the_model_is_left_as_it_was():
    model, seen = Model(spare=True), {}
    before = model.layers[1].shared.place
    with watched_lookups(model, 5, lambda: None, seen):
        assert isinstance(model.layers[1].shared.place, Watched)
    assert model.layers[1].shared.place is before
    assert set(seen) == {("layers.1.shared", "place"), ("layers.1.shared", "spare")}


def test_a_list_of_some_layers_keeps_them_all():
    class Listed(Model):
        def __init__(self):
            super().__init__()
            self.wide_layers = [1, 3]

        def number(self, i):
            return 1 if i in self.wide_layers and i == 1 else i

    assert layers(Listed())[1].frozen == (
        "'wide_layers' lists some layers by their numbers, which change when a layer goes"
    )
