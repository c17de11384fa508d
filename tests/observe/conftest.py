"""A small language model with every kind of place that is observed, and its groups by hand."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphprune.graph import Axis, Block, DependencyGraph, Group, MaskSite, Member

VOCAB, HIDDEN, CHANNELS, EXPERTS = 11, 6, 8, 3
ONE = (Block(start=0, unit_stride=1),)
PAIRS = (Block(start=0, unit_stride=2, loops=((2, 1),)),)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, HIDDEN))
        self.bias = nn.Parameter(torch.randn(EXPERTS))

    def forward(self, x):
        return torch.softmax(F.linear(x, self.weight, self.bias), dim=-1)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = Router()
        self.up = nn.Parameter(torch.randn(EXPERTS, 4, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 4))

    def forward(self, x):
        hidden = torch.einsum("bth,ech->btec", x, self.up).tanh()
        return torch.einsum("btec,ehc,bte->bth", hidden, self.down, self.router(x))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(HIDDEN, CHANNELS)
        self.scale = nn.Parameter(torch.randn(CHANNELS))
        self.down = nn.Linear(CHANNELS, HIDDEN)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.down(self.up(x).tanh() * self.scale))


class Lm(nn.Module):
    """Tied embeddings, an MLP, experts; the loss of transformers' causal language models."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.mlp = Mlp()
        self.moe = Experts()
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.randn(HIDDEN))
        self.unused = nn.Parameter(torch.ones(CHANNELS))

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embed(input_ids)
        x = x + self.mlp(x) + self.offset
        logits = self.head(x + self.moe(x))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1))
        return SimpleNamespace(logits=logits, loss=loss)


def member(tensor, dim, size, length, blocks=ONE, consumes=False):
    return Member(tensor=tensor, dim=dim, size=size, length=length, blocks=blocks, consumes=consumes)


def lm_graph(model):
    axis = Axis(size=4, length=CHANNELS, blocks=PAIRS)
    channels = Group(
        name="mlp/mlp.channel",
        role="mlp.channel",
        layer=0,
        size=4,
        members=(
            member("mlp.up.weight", 0, 4, CHANNELS, PAIRS),
            member("mlp.up.bias", 0, 4, CHANNELS, PAIRS),
            member("mlp.scale", 0, 4, CHANNELS, PAIRS),
            member("unused", 0, 4, CHANNELS, PAIRS),
            member("mlp.down.weight", 1, 4, CHANNELS, PAIRS, consumes=True),
        ),
        sites=(MaskSite(kind="input", module="mlp.down", axis=axis),),
    )
    experts = Group(
        name="moe/moe.expert",
        role="moe.expert",
        layer=0,
        size=EXPERTS,
        members=tuple(
            member(n, 0, EXPERTS, EXPERTS) for n in ("moe.up", "moe.down", "moe.router.weight", "moe.router.bias")
        ),
        sites=(
            MaskSite(
                kind="logits",
                module="moe.router",
                axis=Axis(size=EXPERTS, length=EXPERTS, blocks=ONE),
                function="softmax",
            ),
        ),
    )
    inner = Group(
        name="moe/moe.channel",
        role="moe.channel",
        layer=0,
        size=4,
        members=(member("moe.up", 1, 4, 4), member("moe.down", 2, 4, 4, consumes=True)),
        sites=(MaskSite(kind="weight", module="moe.down", axis=Axis(size=4, length=4, blocks=ONE), dim=2),),
    )
    hidden = Group(
        name="hidden",
        role="hidden",
        layer=None,
        size=HIDDEN,
        members=(member("embed.weight", 1, HIDDEN, HIDDEN), member("offset", 0, HIDDEN, HIDDEN)),
    )
    shapes = {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    return DependencyGraph(groups=(channels, experts, inner, hidden), shapes=shapes, layers=1)


@pytest.fixture
def lm():
    """The model in float64, in evaluation mode, its parameters not trainable."""
    torch.manual_seed(0)
    return Lm().double().eval().requires_grad_(False)


@pytest.fixture
def graph(lm):
    return lm_graph(lm)


@pytest.fixture
def ids():
    """Three sequences of nine tokens."""
    return torch.randint(0, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
