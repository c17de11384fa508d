import torch
from torch import nn

from graphprune.engine.gradients import Gradients
from graphprune.observe.factors import own_gradient


class Scaler:
    """A loss scaler that has unscaled by hand, as clipping does."""

    def __init__(self, *, done):
        self.calls, self.done = 0, done

    def unscale_(self, optimizer):
        self.calls += 1
        if self.done:
            raise RuntimeError("unscale_() has already been called")

    def get_scale(self):
        return 8.0


class Wrapped:
    """What Accelerate hands to a Trainer."""

    def __init__(self, optimizer, scaler=None):
        self.optimizer, self.scaler = optimizer, scaler


def test_gradients_hang_on_their_parameters():
    model = nn.Linear(2, 2)
    gradients = Gradients(Wrapped(torch.optim.SGD(model.parameters())))
    assert gradients.loss_scale is None and gradients.of is own_gradient
    assert gradients.of(model.weight) is None
    model.weight.grad = torch.tensor([[1.0, float("nan")], [0.0, 0.0]])
    assert gradients.of(model.weight) is model.weight.grad
    assert gradients.nonfinite(model) == ["weight"]


def test_a_loss_scale_is_taken_out_once():
    for done in (False, True):
        scaler = Scaler(done=done)
        assert Gradients(Wrapped(None, scaler)).loss_scale == 8.0
        assert scaler.calls == 1
