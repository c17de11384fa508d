"""What must not be pruned, though it looks as if it could be: the guards of law 2."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from graphprune.errors import PlanError
from graphprune.plan import PrunePlan
from graphprune.trace import groups, trace
from graphprune.trace.axes import Atom
from graphprune.trace.findings import Findings
from graphprune.trace.tracer import Tracer


class Stack(nn.Module):
    """Three residual layers of one kind, ten features wide."""

    def __init__(self, layer):
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.layers = nn.ModuleList(layer() for _ in range(3))
        self.head = nn.Linear(10, 11)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(10, 14), nn.Linear(14, 10)

    def forward(self, x):
        return self.down(self.hidden(x))

    def hidden(self, x):
        return self.up(x).relu()


class Numbered(Plain):
    """Unit 3 is multiplied by 3: after a cut, the constant would belong to other units."""

    def hidden(self, x):
        return super().hidden(x) * torch.arange(14, device=x.device)


class Spare(Plain):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(10, 6)


class Routed(nn.Module):
    """Experts reached by Python integers, which no tensor operation ties to the router's rows."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(10, 4)
        self.experts = nn.ModuleList(Plain() for _ in range(4))

    def forward(self, x):
        best = self.router(x).softmax(-1).topk(2)
        weights = [(best.values * (best.indices == e)).sum(-1, keepdim=True) for e in range(4)]
        return sum(w * expert(x) for w, expert in zip(weights, self.experts, strict=True))


class Grid(nn.Module):
    """Nine experts, each chosen by a row and a column of a grid: a product of keys."""

    def __init__(self):
        super().__init__()
        self.rows, self.columns, self.experts = nn.Linear(10, 3), nn.Linear(10, 3), nn.Embedding(9, 10)

    def forward(self, x):
        (a, row), (b, column) = self.rows(x).topk(2), self.columns(x).topk(2)
        scores, cell = (a[..., None] + b[..., None, :]).flatten(-2), (row[..., None] * 3 + column[..., None, :])
        best = scores.topk(2)
        chosen = cell.flatten(-2).gather(-1, best.indices)
        return (best.values[..., None] * self.experts(chosen)).sum(-2)


class Summed(nn.Module):
    """Attention whose softmax is written out."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(10, 12) for _ in range(3))
        self.out = nn.Linear(12, 10)

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (-1, 4)).transpose(1, 2) for w in (self.query, self.key, self.value))
        scores = q @ k.mT
        weights = (scores - scores.logsumexp(-1, keepdim=True)).exp()
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def graph_of(layer):
    return trace(Stack(layer))


def test_channels_without_any_trap_can_be_pruned():
    graph = graph_of(Plain)
    assert [(g.layer, g.size, g.frozen) for g in graph.select(role="mlp.channel")] == [(i, 14, None) for i in range(3)]


@pytest.mark.parametrize(
    ("layer", "role", "reason"),
    [
        (Routed, "moe.expert", "only the router's rows were traced; the experts behind it were reached through Python"),
        (Numbered, "mlp.channel", "a constant with different values per unit is computed inside layers."),
    ],
)
def test_what_looks_prunable_and_is_not_is_frozen_and_says_why(layer, role, reason):
    graph = graph_of(layer)
    assert [g.layer for g in graph.select(role=role, frozen=True)] == [0, 1, 2]
    for group in graph.select(role=role, frozen=True):
        assert group.frozen.startswith(reason)
        with pytest.raises(PlanError, match=r"must not be pruned|frozen"):
            PrunePlan.remove(graph, {group.name: [0]})


def test_experts_in_a_grid_of_keys_are_frozen_and_say_why():
    graph = graph_of(Grid)
    experts = [g for g in graph.select(role="moe.expert", frozen=True) if g.size == 9]
    assert [(g.layer, g.frozen) for g in experts] == [(i, groups.COMPUTED) for i in range(3)]


def test_heads_under_a_softmax_that_is_written_out_are_attention():
    assert [(g.layer, g.size) for g in graph_of(Summed).select(role="attention.group")] == [(i, 3) for i in range(3)]


def test_experts_of_their_own_modules_keep_their_channels():
    channels = graph_of(Routed).select(role="mlp.channel")
    assert [(g.layer, g.size) for g in channels] == [(i, 14) for i in range(3) for _ in range(4)]


def test_parameters_that_the_forward_never_met_are_reported_and_frozen():
    graph = graph_of(Spare)
    assert graph.untraced == tuple(f"layers.{i}.unused.{leaf}" for i in range(3) for leaf in ("bias", "weight"))
    axes = [g for g in graph.groups if any("unused" in m.tensor for m in g.members) and not g.stacks]
    assert axes
    assert {g.frozen for g in axes} == {"the traced forward pass never used it"}
    assert len(graph.select(role="mlp.channel")) == 3


def test_a_group_that_no_mask_can_silence_is_frozen():
    draft = groups.Draft(Atom(14), role="mlp.channel")
    draft.members = [SimpleNamespace(tensor="up")]
    seen = Findings(Tracer(touched={"up"}))
    assert groups._frozen(seen, draft, (), []) == (
        "no place was found where a unit could be silenced, so removing cannot be checked"
    )
