"""What passes between the layers of the stack besides the stream, and what that means for leaving them out."""

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import PlanError
from graphprune.trace import trace

WIDTH = 10


class Lent(nn.Module):
    """Mixes the stream with keys: its own, those of an earlier layer, or none."""

    def __init__(self, lends, borrows):
        super().__init__()
        self.lends, self.borrows = lends, borrows
        self.up, self.down = nn.Linear(WIDTH, 14), nn.Linear(14, WIDTH)

    def forward(self, x, shared):
        made = self.up(x).relu()
        if self.lends:
            shared["keys"] = made.sigmoid()
        return x + self.down(made * shared["keys"] if self.borrows else made)


class Config:
    """Says which layers borrow, in a list that it computes."""

    def __init__(self, modes):
        self.num_hidden_layers, self.modes = len(modes), modes

    @property
    def sharing(self) -> list[str | None]:
        """What every layer does."""
        return self.modes[: self.num_hidden_layers]


class Sharing(nn.Module):
    """Layers of which some lend what they compute to later ones."""

    def __init__(self, *modes):
        super().__init__()
        self.config = Config(list(modes))
        self.embed = nn.Embedding(17, WIDTH)
        self.layers = nn.ModuleList(Lent(mode == "lend", mode == "borrow") for mode in modes)
        self.head = nn.Linear(WIDTH, 17)

    def forward(self, input_ids):
        x, shared = self.embed(input_ids), {}
        for layer in self.layers:
            x = layer(x, shared)
        return {"logits": self.head(x)}


IDS = torch.arange(10).reshape(2, 5)


def layers(model):
    graph = trace(model, example_inputs={"input_ids": IDS})
    (group,) = graph.select(role="layer", frozen=None)
    return graph, group


@torch.no_grad()
def test_a_layer_that_lends_stays_and_the_others_may_go():
    torch.manual_seed(0)
    model = Sharing(None, "lend", None, "borrow", "borrow").eval()
    graph, group = layers(model)
    assert (group.frozen, group.minimum, group.essential) == (None, 1, ((1,),))
    reason = "layer 1 computes something besides the residual stream that is used in layer 3"
    assert graph.notes == (f"layer 1 must stay: {reason}",)
    with pytest.raises(PlanError, match="unit 1 must stay: it is the only one of its kind, or others need it"):
        gp.PrunePlan.remove(graph, {group.name: [1]})
    plan = gp.PrunePlan.remove(graph, {group.name: [0, 2, 4]})
    with gp.masked(model, plan, graph):
        masked = model(IDS)["logits"]
    assert (masked - model(IDS)["logits"]).abs().max() > 1e-3
    small = gp.reshape(model, plan, graph)
    torch.testing.assert_close(small(IDS)["logits"], masked)
    assert small.config.sharing == ["lend", "borrow"]


def test_where_every_layer_lends_none_may_go():
    class Chained(Lent):
        def forward(self, x, shared):
            made = super().forward(x, shared)
            shared["all"] = shared.get("all", 0) + made.sin()
            return made

    class Summed(Sharing):
        def forward(self, input_ids):
            x, shared = self.embed(input_ids), {}
            for layer in self.layers:
                x = layer(x, shared)
            return {"logits": self.head(x + shared["all"])}

    model = Summed(None, None, None)
    model.layers = nn.ModuleList(Chained(lends=False, borrows=False) for _ in range(3))
    _, group = layers(model)
    assert group.frozen == "layer 0 computes something besides the residual stream that is used in layer 1"


class Stateful(nn.Module):
    """Layers that hand out a state, which the model stores, and looks at again if it is told to."""

    def __init__(self, look):
        super().__init__()
        self.look = look
        self.config = Config([None, None, None])
        self.embed = nn.Embedding(17, WIDTH)
        self.layers = nn.ModuleList(Keeping() for _ in range(3))
        self.head = nn.Linear(WIDTH, 17)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        whole = torch.zeros(self.config.num_hidden_layers, *input_ids.shape, WIDTH)
        states = [torch.zeros(*input_ids.shape, WIDTH) for _ in range(self.config.num_hidden_layers)]
        for i, layer in enumerate(self.layers):
            x, state = layer(x)
            (whole[i] if self.look == "whole" else states[i]).copy_(state)
        return {"logits": self.head(x + {"first": states[0], "whole": whole.sum(0), "": 0}[self.look])}


class Keeping(nn.Module):
    """A layer with a state."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        state = self.inner(x).tanh()
        return x + state, state.sin()


@torch.no_grad()
def test_a_state_that_only_its_layer_reads_keeps_no_layer():
    torch.manual_seed(0)
    model = Stateful("").eval()
    graph, group = layers(model)
    assert (group.frozen, group.essential) == (None, ())
    plan = gp.PrunePlan.remove(graph, {group.name: [0]})
    with gp.masked(model, plan, graph):
        masked = model(IDS)["logits"]
    torch.testing.assert_close(gp.reshape(model, plan, graph)(IDS)["logits"], masked)


def test_a_state_that_is_read_elsewhere_keeps_its_layer():
    assert layers(Stateful("first"))[1].essential == ((0,),)
    assert layers(Stateful("whole"))[1].frozen is not None
