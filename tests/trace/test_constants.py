"""Buffers that are not in the checkpoint: slices of them go with units, or units stay."""

import pytest
import torch
from torch import nn

from graphprune.trace import trace
from tests.tables import tabled

IDS = {"input_ids": torch.zeros(1, 9, dtype=torch.long)}


def hidden(model):
    graph = trace(model, example_inputs=IDS)
    return graph, graph.by_name["hidden"]


def test_a_buffer_is_cut_with_the_units_that_run_through_it():
    graph, group = hidden(tabled())
    assert group.frozen is None
    (constant,) = graph.constants
    assert (constant.group, constant.module, constant.argument) == ("hidden", "positions", "table")
    assert (constant.dim, constant.axis.size, constant.buffer) == (-1, 12, True)
    assert "positions.table" not in graph.shapes  # no checkpoint has it


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: tabled("attribute"), "a constant that is not in the checkpoint has a value per unit"),
        (lambda: tabled(inline_norm=True), "which no mask can silence there"),
    ],
)
def test_units_stay_where_a_constant_cannot_follow(model, reason):
    graph, group = hidden(model())
    assert reason in group.frozen
    assert graph.constants == ()


def test_integers_that_point_somewhere_are_not_cut():
    class Reordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(50, 12), nn.Linear(12, 20), nn.Linear(20, 50)
            self.register_buffer("order", torch.randperm(20), persistent=False)

        def forward(self, input_ids):
            return self.down(torch.relu(self.up(self.embed(input_ids)))[..., self.order])

    graph = trace(Reordered(), example_inputs=IDS)
    assert graph.constants == ()
    assert all(group.frozen for group in graph if any(m.tensor == "down.weight" and m.dim == 1 for m in group.members))
