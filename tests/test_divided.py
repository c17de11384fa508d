"""Tensors of which processes hold parts: what is whole already is left alone; the rest is in test_parallel.py."""

from types import SimpleNamespace

import torch
from torch import nn

from graphprune.divided import is_divided, shape_of, whole, zeros


def test_a_tensor_of_one_process_is_whole():
    parameter = nn.Parameter(torch.ones(2, 3))
    assert not is_divided(parameter) and shape_of(parameter) == (2, 3)
    assert whole(parameter).data_ptr() == parameter.data_ptr() and not whole(parameter).requires_grad
    gradient = torch.ones(2)
    assert whole(gradient) is gradient


def as_deepspeed_marks(parameter, shape, status):
    parameter.ds_id, parameter.ds_shape, parameter.ds_status = 0, torch.Size(shape), SimpleNamespace(name=status)
    return parameter


def test_deepspeed_tells_the_shape_of_what_it_took_away():
    parameter = as_deepspeed_marks(nn.Parameter(torch.empty(0, dtype=torch.float64)), (4, 5), "NOT_AVAILABLE")
    assert is_divided(parameter) and shape_of(parameter) == (4, 5)
    assert zeros(parameter).shape == (4, 5) and zeros(parameter).dtype == torch.float64


def test_while_its_layer_runs_the_whole_is_there():
    parameter = as_deepspeed_marks(nn.Parameter(torch.ones(4, 5)), (4, 5), "AVAILABLE")
    assert torch.equal(whole(parameter), torch.ones(4, 5))
