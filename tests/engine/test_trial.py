"""Which optimizers can go on with a smaller parameter."""

import copy

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from graphprune.engine.trial import Trial, tried


def parameters():
    return [nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (4,), (2, 4, 4))]


@pytest.mark.parametrize(
    "name", "SGD Adam AdamW Adamax NAdam RAdam RMSprop Adagrad Adadelta Rprop ASGD".split(), ids=str
)
def test_element_by_element(name):
    assert tried(getattr(torch.optim, name)(parameters(), lr=1e-3)) == Trial()


def test_whatever_it_is_called_and_set_to():
    class Own(torch.optim.AdamW):
        """Somebody's."""

    held = parameters()
    groups = [{"params": held[:1], "weight_decay": 0.1}, {"params": held[1:]}, {"params": []}]
    assert tried(Own(groups, lr=0.0, amsgrad=True)) == Trial()
    assert tried(None) == Trial()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: Adafactor(p, lr=1e-3, scale_parameter=False, relative_step=False),
        lambda p: Adafactor(p),
        lambda p: torch.optim.Adafactor(p, lr=1e-3),
    ],
)
def test_factored_ones_can_be_cut_and_it_is_said(optimizer):
    assert tried(optimizer(parameters())) == Trial(
        difference="Adafactor judges elements by others: after each cut by those that are left"
    )


def test_steps_that_are_made_of_whole_matrices_are_an_obstacle():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    found = tried(torch.optim.Muon(parameters()[:1], lr=1e-3))
    assert found == Trial("the optimizer Muon does not treat every element of a parameter by itself")


def test_a_trust_ratio_is_an_obstacle():
    class Trusting(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[-1]["params"]:
                p.add_(p.grad * p.norm() / p.grad.norm(), alpha=-0.01)
                self.state[p]["norm"] = p.norm()

    assert "does not treat every element" in tried(Trusting(parameters(), lr=1e-3)).obstacle


def test_a_setting_that_steps_change_by_what_they_see_is_an_obstacle():
    class Adapting(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.param_groups[-1]["size"] = float(self.param_groups[-1]["params"][0].detach().norm())

    assert "does not treat every element" in tried(Adapting(parameters(), lr=1e-3)).obstacle


def test_what_cannot_be_tried_is_an_obstacle():
    found = tried(torch.optim.LBFGS(parameters(), lr=1e-3))
    assert found.obstacle.startswith("the optimizer LBFGS cannot be tried on a small tensor (TypeError")

    class Keeping(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            self.state[self.param_groups[-1]["params"][0]]["projector"] = object()

    found = tried(Keeping(parameters(), lr=1e-3))
    assert found == Trial("the optimizer Keeping keeps 'projector', and how that is cut is not known")


def test_nothing_is_left_of_a_trial():
    held = parameters()
    optimizer = torch.optim.AdamW(held, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # wraps the step
    seen = []
    optimizer.register_step_post_hook(lambda *args: seen.append(args))
    for p in held:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before, random = copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()
    values = [p.detach().clone() for p in held]
    assert tried(optimizer) == Trial()
    assert len(seen) == 1 and scheduler.last_epoch == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, v) for p, v in zip(held, values, strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"])


def test_those_of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.initialize()
    assert tried(bitsandbytes.optim.AdamW32bit(parameters(), lr=1e-3)) == Trial()
    manager.index2config[0, 0] = {"optim_bits": 32}  # as the Trainer does where an embedding comes first
    assert tried(bitsandbytes.optim.AdamW8bit(parameters(), lr=1e-3)) == Trial(
        difference="AdamW8bit judges elements by others: after each cut by those that are left"
    )
    manager.initialize()
    assert tried(bitsandbytes.optim.LAMB(parameters(), lr=1e-3)).obstacle is not None
    assert "how that is cut is not known" in tried(bitsandbytes.optim.AdEMAMix8bit(parameters(), lr=1e-3)).obstacle
