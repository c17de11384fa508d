"""Evaluation mode for a while."""

import pytest
from torch import nn

from graphprune.evaluating import evaluating


def fail_inside(model):
    with evaluating(model):
        assert not any(m.training for m in model.modules())
        raise RuntimeError


def test_every_module_gets_its_own_mode_back_also_after_an_error():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    model[0].eval()
    with pytest.raises(RuntimeError):
        fail_inside(model)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
