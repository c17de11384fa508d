"""Forward passes that ask in Python which positions were chosen."""

import pytest
import torch
from torch import nn

from graphprune.trace import trace


class Chooser(nn.Module):
    """One layer: an expert list behind a router, gone through as ``choose`` says."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose
        self.embed, self.router, self.head = nn.Embedding(20, 10), nn.Linear(10, 4), nn.Linear(10, 20)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 10)) for _ in range(4))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        best = self.router(x).softmax(-1).topk(2)
        for e in self.choose(best.indices):
            weight = (best.values * (best.indices == e)).sum(-1, keepdim=True)
            x = x + weight * self.experts[e](x)
        return self.head(x)


def counted(indices):
    return [int(e.item()) for e in torch.bincount(indices.flatten(), minlength=4).nonzero()]


def hit(indices):
    return nn.functional.one_hot(indices, 4).sum((0, 1, 2)).gt(0).nonzero().flatten().tolist()


@pytest.mark.parametrize("choose", [lambda i: i.unique().tolist(), hit])
def test_one_choice_is_followed_and_said(choose):
    graph = trace(Chooser(choose))
    assert any("finds positions in data; one of them was followed" in note for note in graph.notes)
    assert {t.split(".")[1] for t in graph.untraced} == {"1", "2", "3"}


@pytest.mark.parametrize("choose", [lambda i: i.unique().tolist(), hit])
def test_nothing_is_concluded_about_what_was_not_followed(choose):
    graph = trace(Chooser(choose))
    frozen = {g.role: g.frozen for g in graph.select(frozen=True)}
    assert "moe.expert" in frozen
    for group in graph.select():
        assert {m.tensor.split(".")[1] for m in group.members if m.tensor.startswith("experts")} <= {"0"}
        assert all(m.tensor.startswith("experts.0.") for m in group.members)
    assert any("'experts.1'" in g.frozen for g in graph.select(frozen=True))


def test_the_axis_along_which_positions_are_asked_is_frozen():
    graph = trace(Chooser(hit))
    (experts,) = graph.select(role="moe.expert", frozen=True)
    assert experts.frozen is not None


@pytest.mark.parametrize("choose", [lambda i: [int(i.float().mean().item())], lambda i: i[i > 1].tolist()])
def test_a_number_that_no_choice_explains_is_not_made_up_but_computed(choose):
    graph = trace(Chooser(choose))
    assert any("traced on tensors with values" in note for note in graph.notes)
