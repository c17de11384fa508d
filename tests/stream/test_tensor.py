"""Deferred tensors go through other people's code as weights do, and refuse what needs their numbers."""

import copy

import pytest
import torch
from torch import nn

from graphprune.errors import StreamError
from graphprune.stream.tensor import DeferredTensor, deferred, is_deferred, node_of


@pytest.fixture
def real():
    return torch.randn(4, 6)


def test_it_is_a_parameter_like_any_other(real):
    made = nn.Parameter(deferred(real))
    assert isinstance(made, nn.Parameter)
    assert isinstance(made, DeferredTensor)
    assert made.requires_grad
    assert made.device.type == "cpu"
    assert made.is_meta
    assert torch.equal(node_of(made).value(), real)
    assert torch.equal(node_of(copy.deepcopy(made)).value(), real)
    assert isinstance(copy.deepcopy(made), nn.Parameter)


def test_a_model_knows(real):
    layer = nn.Linear(6, 4)
    assert not is_deferred(layer)
    layer.weight = nn.Parameter(deferred(real))
    assert is_deferred(layer)


@torch.no_grad()
def test_a_change_in_place_is_seen_through_every_name(real):
    weight = nn.Parameter(deferred(real.clone()))
    weight.data += torch.ones(6)
    weight.detach().mul_(2.0)
    assert torch.equal(node_of(weight).value(), (real + 1) * 2)


@torch.no_grad()
def test_what_is_assigned_to_data_arrives(real):
    weight = nn.Parameter(deferred(real))
    weight.data = weight.data * 3.0
    assert torch.equal(node_of(weight).value(), real * 3)
    with pytest.raises(StreamError, match=r"shape \(4, 6\) cannot become one of \(2, 6\)"):
        weight.data = weight.data[:2]


@torch.no_grad()
def test_what_is_given_is_not_changed(real):
    before = real.clone()
    weight = deferred(real)
    weight += 1.0
    node_of(weight).value()
    assert torch.equal(real, before)


@torch.no_grad()
def test_a_part_of_a_weight_that_was_changed_is_not_used(real):
    weight = deferred(real)
    rows = weight[1:3]
    weight.add_(1.0)
    with pytest.raises(StreamError, match="a weight was changed of which this one is a part"):
        node_of(rows)
    other = deferred(real)
    other[1:3].mul_(0.0)
    with pytest.raises(StreamError, match="a weight was changed"):
        node_of(other)


@pytest.mark.parametrize(
    "need",
    [lambda t: t.sum().item(), lambda t: bool((t > 0).all()), lambda t: t.tolist(), lambda t: t[t > 0]],
    ids=["item", "branch", "list", "mask"],
)
def test_whoever_needs_the_numbers_is_refused(real, need):
    with pytest.raises((StreamError, RuntimeError)):
        need(deferred(real))


def test_a_cast_is_made_later(real):
    half = deferred(real).to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(node_of(half).value(), real.to(torch.bfloat16))
