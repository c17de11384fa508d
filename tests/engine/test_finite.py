import pytest
import torch
from torch import nn

from graphprune.engine.finite import check_gradients, nonfinite_gradients
from graphprune.errors import NonFiniteError
from graphprune.graph import Block, Group, Member

UP = Member(tensor="1.weight", dim=0, size=4, length=4, blocks=(Block(start=0, unit_stride=1),), consumes=False)
GROUP = Group(name="1/mlp.channel", role="mlp.channel", layer=1, size=4, members=(UP,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_are_named_with_group_and_step(value):
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model(torch.ones(1, 2)).sum().backward()
    check_gradients(nonfinite_gradients(model), [GROUP], 3)
    model[1].weight.grad[0, 1] = value
    assert nonfinite_gradients(model) == ["1.weight"]
    message = r"group '1/mlp\.channel': the gradient of '1\.weight' is NaN or infinite at step 3"
    with pytest.raises(NonFiniteError, match=message):
        check_gradients(nonfinite_gradients(model), [GROUP], 3)


def test_further_gradients_are_counted():
    model = nn.Linear(2, 4)
    model(torch.full((1, 2), float("inf"))).sum().backward()
    model.bias.grad[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the gradient of 'weight' \(and of 1 more\) is NaN"):
        check_gradients(nonfinite_gradients(model), [GROUP], 3)


def test_a_gradient_outside_of_all_groups_is_named_alone():
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    model(torch.ones(1, 2)).sum().backward()
    model[0].bias.grad[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^the gradient of '0\.bias' is NaN or infinite at step 1"):
        check_gradients(nonfinite_gradients(model), [GROUP], 1)


def test_a_model_without_gradients_passes():
    assert nonfinite_gradients(nn.Linear(2, 2)) == []
