"""Graph names resolve to the same live objects through every wrapper."""

import peft
import pytest
import torch
from torch import nn

from graphprune.errors import ReshapeError
from graphprune.names import bare, plain, resolve_module, resolve_owner, resolve_parameter, resolve_tensor
from tests.decoders import tiny


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        self.register_buffer("offset", torch.zeros(4))

    def forward(self, x):
        return self.down(self.up(x).relu()) + self.offset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleList([Mlp(), Mlp()])

    def forward(self, x):
        for layer in self.model:
            x = layer(x)
        return x


@pytest.fixture
def net():
    return Net()


def adapted(net, **more):
    return peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["up"], **more))


def test_a_plain_model_resolves_to_itself(net):
    assert resolve_module(net, "") is net
    assert resolve_module(net, "model.1.up") is net.model[1].up
    assert resolve_parameter(net, "model.0.down.bias") is net.model[0].down.bias
    assert resolve_owner(net, "model.1.offset") == (net.model[1], "offset")
    assert resolve_tensor(net, "model.1.offset") is net.model[1].offset


def test_every_parameter_is_found_under_peft(net):
    before = dict(net.named_parameters())
    model = adapted(net)
    assert bare(model) is net
    for name, parameter in before.items():
        assert resolve_parameter(model, name) is parameter


def test_an_adapted_layer_resolves_to_its_wrapper_and_its_tensor_to_the_base(net):
    linear = net.model[0].up
    model = adapted(net)
    wrapper = resolve_module(model, "model.0.up")
    assert isinstance(wrapper, peft.tuners.lora.LoraLayer)
    assert plain(wrapper) is linear
    assert resolve_owner(model, "model.0.up.weight") == (linear, "weight")


def test_of_a_layer_trained_as_a_copy_the_copy_in_use_is_taken(net):
    model = adapted(net, modules_to_save=["down"])
    found = resolve_parameter(model, "model.1.down.weight")
    assert found.requires_grad
    assert found is net.model[1].down.modules_to_save["default"].weight


def test_an_embedding_with_trained_tokens_is_the_embedding():
    model = tiny("llama")
    weight = model.model.embed_tokens.weight
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 5])
    wrapped = peft.get_peft_model(model, config)
    assert resolve_parameter(wrapped, "model.embed_tokens.weight") is weight


def test_adapters_injected_without_an_outer_wrapper(net):
    linear = net.model[1].up
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["up"]), net)
    assert resolve_parameter(net, "model.1.up.weight") is linear.weight


def test_nested_parameter_wrappers(net):
    expert = net.model[0]
    expert.stack, expert.other = nn.Parameter(torch.ones(3, 4, 5)), nn.Parameter(torch.ones(3, 5, 4))
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["model.0.stack", "model.0.other"])
    model = peft.get_peft_model(net, config)
    assert resolve_parameter(model, "model.0.stack") is expert.stack
    assert resolve_parameter(model, "model.0.other") is expert.other
    assert resolve_parameter(model, "model.0.up.weight") is expert.up.weight
    assert plain(resolve_module(model, "model.0")) is expert


def test_compiled_and_data_parallel_models(net):
    assert resolve_module(nn.DataParallel(net), "model.0.up") is net.model[0].up
    assert resolve_module(torch.compile(net), "model.0.up") is net.model[0].up


def test_errors_say_what_is_there(net):
    with pytest.raises(ReshapeError, match=r"no module 'model\.0\.gate'.*a Mlp, which has up, down"):
        resolve_module(net, "model.0.gate")
    with pytest.raises(ReshapeError, match=r"no tensor 'model\.0\.up\.scale'.*a Linear, which has weight, bias"):
        resolve_tensor(adapted(net), "model.0.up.scale")
    with pytest.raises(ReshapeError, match=r"'model\.0\.offset' to be a parameter, found a buffer of shape \(4,\)"):
        resolve_parameter(net, "model.0.offset")
