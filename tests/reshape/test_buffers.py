"""Cut buffers that no checkpoint has: equal to the mask, and never silently made anew."""

import copy
import pickle

import pytest
import torch

from graphprune.errors import ReshapeError
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import cut_model
from graphprune.reshape.buffers import cut_buffers
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.tables import tabled

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(3))


def traced(model):
    return trace(model, example_inputs={"input_ids": IDS[:1]})


def cut(model, units):
    graph = traced(model)
    cut_model(model, graph, PrunePlan.remove(graph, {"hidden": units}))
    return model


@torch.no_grad()
def test_masked_equals_reshaped_once_and_twice():
    model = tabled()
    graph = traced(model)
    with masked(model, PrunePlan.remove(graph, {"hidden": [1, 5, 6]}), graph):
        expected = model(IDS)
    once = cut(copy.deepcopy(model), [1, 5])
    twice = cut(once, [4])  # the one that was 6
    torch.testing.assert_close(twice(IDS), expected, rtol=0, atol=1e-5)
    assert twice.positions.table.shape == (16, 9)
    assert torch.equal(twice.positions.table, model.positions.table[:, [0, 2, 3, 4, 7, 8, 9, 10, 11]])
    assert cut_buffers(twice, history_of(twice)).keys() == {"positions.table"}
    assert len(twice.positions._forward_hooks) == 1


@torch.no_grad()
def test_a_table_that_is_made_anew_is_refused_and_the_old_one_stays():
    model = cut(tabled(), [0, 1])
    expected = model(IDS)
    longer = torch.zeros(1, 20, dtype=torch.long)
    with pytest.raises(
        ReshapeError, match=r"Positions has made its buffer 'table' anew.*\(20, 12\), expected \(16, 10\)"
    ):
        model(longer)
    assert torch.equal(model(IDS), expected)


def test_other_values_of_the_same_shape_are_refused_too():
    model = cut(tabled(), [0, 1])

    def rewrite(module, _args, _outputs):
        module.table = torch.zeros_like(module.table)

    model.positions.register_forward_hook(rewrite, prepend=True)
    with pytest.raises(ReshapeError, match="other values than the ones that were cut"):
        model(IDS)


@torch.no_grad()
def test_a_table_may_move_and_be_copied():
    model = cut(tabled(), [0, 1])
    expected = model(IDS)

    def move(module, _args, _outputs):
        module.table = module.table.to(torch.float64).to(torch.float32)

    model.positions.register_forward_hook(move, prepend=True)
    assert torch.equal(model(IDS), expected)
    assert torch.equal(copy.deepcopy(cut(tabled(), [0, 1]))(IDS), expected)
    assert torch.equal(pickle.loads(pickle.dumps(cut(tabled(), [0, 1])))(IDS), expected)
    torch.testing.assert_close(cut(tabled(), [0, 1]).double()(IDS).float(), expected, rtol=0, atol=1e-5)


def test_a_table_of_another_shape_than_traced_is_refused():
    model = tabled()
    graph = traced(model)
    model.positions.table = torch.zeros(16, 11)
    with pytest.raises(ReshapeError, match=r"'positions.table': expected length 12 in dimension -1.*\(16, 11\)"):
        cut_model(model, graph, PrunePlan.remove(graph, {"hidden": [0]}))
    assert model.embed.weight.shape == (50, 12)
