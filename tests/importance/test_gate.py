"""The gate criterion is the size of the mask gradient; that the gradient is exact is tested in tests/observe."""

import torch

from graphprune.importance import Signal, build


def test_absolute_values_and_squares(toy):
    gradient = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    seen = toy.Seen({}, masks={"layer/attention": gradient})
    assert build("gate").score(toy.grouped, seen).tolist() == [2.0, 0.5, 3.0]
    assert build({"name": "gate", "power": 2}).score(toy.grouped, seen).tolist() == [4.0, 0.25, 9.0]
    assert build("gate").score(toy.grouped, seen).dtype == torch.float32


def test_what_is_averaged_is_said():
    assert build("gate").expectation == "batch"
    assert build({"name": "gate", "mean_of": "sample"}).expectation == "sample"
    assert build("gate").signals == {Signal.MASK_GRADIENT}
