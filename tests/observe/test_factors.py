"""Factors and base weights are read from PEFT as PEFT applies them."""

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graphprune.errors import CriterionError, ReshapeError
from graphprune.observe.factors import base_weight, factor_parameters, lora_factors


class Net(nn.Module):
    def __init__(self, is_transposed=False):
        super().__init__()
        self.lin = nn.Linear(4, 6)
        self.conv = Conv1D(6, 4)
        self.table = nn.Embedding(7, 5)
        self.kernel = nn.Conv1d(3, 5, 2)
        self.stack = nn.Module()
        self.stack.up = nn.Parameter(torch.randn(3, 4, 5))
        self.stack.is_transposed = is_transposed

    def forward(self, x):
        return self.lin(x)


def adapted(net, **options):
    options = {"target_modules": ["lin"], "r": 2, "lora_alpha": 3, **options}
    model = peft.get_peft_model(net, peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
            parameter.grad = torch.randn_like(parameter)
    return model


def update(factors):
    product = factors.scaling * factors.b @ factors.a
    return product.mT if factors.transposed else product


def wrapper(model, path):
    return model.get_base_model().get_submodule(path)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_linear_layer(rslora):
    model = adapted(Net(), use_rslora=rslora)
    factors = lora_factors(model, "lin.weight")
    layer = wrapper(model, "lin")
    torch.testing.assert_close(update(factors), layer.get_delta_weight("default"))
    assert factors.scaling == (3 / 2**0.5 if rslora else 1.5)
    assert factors.grad_a is layer.lora_A["default"].weight.grad
    assert factors.grad_b is layer.lora_B["default"].weight.grad
    assert list(factor_parameters(model, "lin.weight")) == [
        layer.lora_A["default"].weight,
        layer.lora_B["default"].weight,
    ]


@pytest.mark.parametrize(("path", "options"), [("conv", {"fan_in_fan_out": True}), ("table", {})])
def test_tensors_stored_as_inputs_by_outputs(path, options):
    model = adapted(Net(), target_modules=[path], **options)
    factors = lora_factors(model, f"{path}.weight")
    assert factors.transposed
    torch.testing.assert_close(update(factors), wrapper(model, path).get_delta_weight("default"))
    assert update(factors).shape == base_weight(model, f"{path}.weight").shape


@pytest.mark.parametrize("is_transposed", [False, True])
def test_stacks_of_matrices(is_transposed):
    model = adapted(Net(is_transposed), target_modules=[], target_parameters=["stack.up"])
    factors = lora_factors(model, "stack.up")
    layer = wrapper(model, "stack")
    torch.testing.assert_close(update(factors), layer.get_delta_weight("default"))
    # Gradients are laid out as the factors are: a step of size one moves each factor by its gradient.
    with torch.no_grad():
        for parameter in factor_parameters(model, "stack.up"):
            parameter -= parameter.grad
    moved = factors.scaling * (factors.b - factors.grad_b) @ (factors.a - factors.grad_a)
    if factors.a.data_ptr() == layer.lora_A["default"].weight.data_ptr():
        moved = factors.scaling * factors.b @ factors.a  # the factors are views and have moved along
    torch.testing.assert_close(moved.mT if factors.transposed else moved, layer.get_delta_weight("default"))


def test_a_factor_without_gradient_counts_as_zero():
    model = adapted(Net())
    wrapper(model, "lin").lora_A["default"].weight.grad = None
    assert torch.equal(lora_factors(model, "lin.weight").grad_a, torch.zeros(2, 4))


def test_where_there_is_no_adapter():
    net = Net()
    assert lora_factors(net, "lin.weight") is None
    model = adapted(net)
    for name in ("lin.bias", "conv.weight", "table.weight", "stack.up", "kernel.weight"):
        assert lora_factors(model, name) is None, name
    model.base_model.disable_adapter_layers()
    assert lora_factors(model, "lin.weight") is None


@pytest.mark.parametrize(("path", "options"), [("kernel", {}), ("lin", {"use_dora": True})])
def test_adapters_whose_update_is_another_are_an_error(path, options):
    model = adapted(Net(), target_modules=[path], **options)
    with pytest.raises(ReshapeError, match=rf"'{path}\.weight' carries an adapter of type"):
        lora_factors(model, f"{path}.weight")


def test_several_active_adapters_are_an_error():
    model = adapted(Net())
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["lin"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(CriterionError, match=r"'lin\.weight' has 2 active adapters \(default, second\), expected one"):
        lora_factors(model, "lin.weight")


def test_the_base_weight_is_without_adapters():
    net = Net()
    before = net.lin.weight.detach().clone()
    model = adapted(net)
    assert torch.equal(base_weight(model, "lin.weight"), before)
    assert not base_weight(model, "lin.weight").requires_grad
    model.merge_adapter()
    with pytest.raises(CriterionError, match=r"merged into 'lin\.weight', .* Call unmerge_adapter\(\) first"):
        base_weight(model, "lin.weight")


def test_a_packed_weight_is_an_error():
    net = Net()
    net.lin.weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        CriterionError, match=r"'lin\.weight' is stored as int8 \(Parameter\), expected a floating-point"
    ):
        base_weight(net, "lin.weight")
