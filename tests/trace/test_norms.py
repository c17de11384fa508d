"""What is done about norms over a pruned axis."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphprune.masking import mean_over, norm_over
from graphprune.trace import trace


class Rms(nn.Module):
    """A root-mean-square norm, with or without a scale, an epsilon attribute, an offset of the scale."""

    def __init__(self, size, *, scale=True, attribute=True, offset=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size)) if scale else None
        self.offset = offset
        if attribute:
            self.eps = 1e-3

    def forward(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + getattr(self, "eps", 1e-3))
        return y if self.weight is None else y * (self.weight + self.offset if self.offset else self.weight)


class Spread(nn.Module):
    def forward(self, x):
        return x / x.std(-1, keepdim=True)


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.embed, self.up, self.norm, self.down = nn.Embedding(9, 10), nn.Linear(10, 14), norm, nn.Linear(14, 10)

    def forward(self, ids):
        x = self.embed(ids)
        return x + self.down(self.norm(self.up(x)))


def channels(norm):
    graph = trace(nn.Sequential(Block(norm)), example_inputs={"input": torch.zeros(1, 3, dtype=torch.long)})
    return next(g for g in graph.groups if any(m.tensor == "0.up.bias" for m in g.members))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_scale_and_an_epsilon_of_its_own_follow(offset):
    group = channels(Rms(14, offset=offset))
    (norm,) = group.norms
    assert (norm.tensor, norm.offset, norm.owner, norm.epsilon) == ("0.norm.weight", offset, "0.norm", "eps")
    assert group.exact
    assert ("input", "0.norm") in {(s.kind, s.module) for s in group.sites}


@pytest.mark.parametrize(
    ("norm", "function"),
    [
        (Rms(14, scale=False), "mean"),
        (Rms(14, attribute=False), "mean"),
        (nn.LayerNorm(14), "layer_norm"),
    ],
)
def test_other_averages_leave_silenced_units_out(norm, function):
    group = channels(norm)
    assert group.exact and group.norms == ()
    assert ("norm", "0.norm", function) in {(s.kind, s.module, s.function) for s in group.sites}


def test_a_statistic_that_no_mask_can_change_is_inexact_and_says_why():
    group = channels(Spread())
    assert not group.exact and "statistic" in group.inexact_reason


def test_averages_over_the_units_that_stay_against_a_direct_computation():
    torch.manual_seed(0)
    x, keep = torch.randn(5, 8), torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 0])
    kept = keep.bool()
    few = x[:, kept]
    assert torch.allclose(mean_over(keep, x, dim=-1), few.mean(-1))
    scale, shift = torch.randn(8), torch.randn(8)
    layer = norm_over(keep, x, scale, shift, 1e-5, centred=True)
    direct = nn.functional.layer_norm(few, (5,), scale[kept], shift[kept], 1e-5)
    assert torch.allclose(layer[:, kept], direct, atol=1e-6) and not layer[:, ~kept].any()
    rms = norm_over(keep, x, scale, eps=1e-5, centred=False)
    assert torch.allclose(rms[:, kept], nn.functional.rms_norm(few, (5,), scale[kept], 1e-5), atol=1e-6)
