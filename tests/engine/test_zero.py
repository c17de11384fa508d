"""DeepSpeed's step, by a stand-in for its engine and its accessors; with DeepSpeed itself in test_parallel.py."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from graphprune.engine.zero import BeforeSteps, ZeroGradients, engine_of


class Engine:
    """As much of ``deepspeed.DeepSpeedEngine`` as is asked; gradients are whole on the parameters."""

    def __init__(self, module, clipping=0.0, scale=None):
        self.module, self.clipping = module, clipping
        self.optimizer = SimpleNamespace(loss_scale=scale)
        self.boundary, self.steps = True, 0

    def gradient_clipping(self):
        return self.clipping

    def fp16_enabled(self):
        return self.optimizer.loss_scale is not None

    def is_gradient_accumulation_boundary(self):
        return self.boundary

    def step(self, by=1):
        self.steps += by
        return by


@pytest.fixture(autouse=True)
def deepspeed(monkeypatch):
    package, utils = ModuleType("deepspeed"), ModuleType("deepspeed.utils")
    package.DeepSpeedEngine, package.utils = Engine, utils
    utils.safe_get_full_grad = utils.safe_get_local_grad = lambda p: p.kept if hasattr(p, "ds_id") else p.grad
    utils.safe_set_local_grad = lambda p, value: p.kept.copy_(value)
    monkeypatch.setitem(sys.modules, "deepspeed", package)
    monkeypatch.setitem(sys.modules, "deepspeed.utils", utils)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def trained(model):
    return dict(model.named_parameters())


def test_the_engine_of_this_training_is_found(model):
    earlier, engine = Engine(model), Engine(model)
    assert engine_of(model, SimpleNamespace(optimizer=engine.optimizer)) is engine
    assert engine_of(model, SimpleNamespace(optimizer=earlier.optimizer)) is earlier
    assert engine_of(model, torch.optim.SGD(model.parameters())) is None
    assert engine_of(nn.Linear(1, 1), SimpleNamespace(optimizer=engine.optimizer)) is None


def test_gradients_are_told_before_the_step_at_the_end_of_an_accumulation(model):
    engine, seen = Engine(model), []
    before = BeforeSteps(engine, lambda gradients: seen.append((gradients, engine.steps)))
    before.open()
    engine.boundary = False
    assert engine.step() == 1 and not seen
    engine.boundary = True
    assert engine.step(by=2) == 2 and engine.steps == 3
    assert [steps for _, steps in seen] == [1]
    before.close()
    engine.step()
    assert len(seen) == 1 and "step" not in vars(engine)


@pytest.mark.parametrize("scale", [None, 16.0])
@pytest.mark.parametrize("largest", [0.0, 0.1, 1e6])
def test_gradients_are_unscaled_and_clipped_as_by_torch(model, scale, largest):
    model(torch.ones(1, 3)).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    factor = min(1.0, largest / (float(norm) + 1e-6)) if largest else 1.0
    for parameter in model.parameters():
        parameter.grad *= scale or 1.0
    gradients = ZeroGradients(Engine(model, largest, scale), trained(model))
    assert gradients.loss_scale == scale
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients.of(parameter), expected[name] * factor)
    assert gradients.nonfinite(model) == []


def test_what_is_not_trained_has_no_gradient_to_the_optimizer(model):
    model(torch.ones(1, 3)).sum().backward()
    assert ZeroGradients(Engine(model), {"1.bias": model[1].bias}).of(model[0].weight) is None


def test_broken_gradients_are_named(model):
    model(torch.ones(1, 3)).sum().backward()
    model[1].weight.grad[0, 0] = float("inf")
    assert ZeroGradients(Engine(model, 1.0), trained(model)).nonfinite(model) == ["1.weight"]


def test_a_gradient_of_an_earlier_step_does_not_count(model):
    for parameter in model.parameters():
        parameter.ds_id, parameter.kept = 0, torch.ones(parameter.shape)
    told = {}

    def look(gradients):
        told.update({n: float(gradients.of(p).sum()) for n, p in model.named_parameters()})

    before = BeforeSteps(Engine(model), look)
    before.open()
    model[0](torch.ones(1, 3)).sum().backward()
    before._engine.step()
    assert told == {"0.weight": 12.0, "0.bias": 4.0, "1.weight": 0.0, "1.bias": 0.0}
    before.close()
