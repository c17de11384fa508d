import numpy as np
import pytest
import torch

from graphprune.engine.average import SlidingAverage, update


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_average_is_equation_11_in_float64(decay):
    rng = np.random.default_rng(0)
    history = rng.random((7, 5))
    expected = np.zeros(5)
    average = SlidingAverage(decay)
    for scores in history:
        expected = decay * expected + (1 - decay) * scores
        average.update({"g": torch.tensor(scores)})
    assert average.values["g"].dtype == torch.float32
    np.testing.assert_allclose(average.values["g"].numpy(), expected, rtol=1e-6)


def test_bias_correction_could_not_change_the_ranking():
    torch.manual_seed(0)
    average = SlidingAverage(0.9)
    for _ in range(3):
        average.update({"g": torch.rand(20)})
    corrected = average.values["g"] / (1 - 0.9**average.count)
    assert torch.equal(corrected.argsort(), average.values["g"].argsort())


def test_update_leaves_its_arguments_alone():
    old, new = {"g": torch.ones(3)}, {"g": torch.zeros(3)}
    result = update(old, new, 0.5)
    assert torch.equal(result["g"], torch.full((3,), 0.5))
    assert torch.equal(old["g"], torch.ones(3))
    assert torch.equal(new["g"], torch.zeros(3))


def test_state_continues_where_it_stopped():
    first, second = SlidingAverage(0.9), SlidingAverage(0.9)
    first.update({"g": torch.tensor([1.0, 2.0])})
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update({"g": torch.tensor([3.0, 5.0])})
    assert torch.equal(first.values["g"], second.values["g"])
    assert second.count == 2


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_outside_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\), got"):
        SlidingAverage(decay)
