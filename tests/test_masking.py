"""Masks: the outputs of zeros written by hand, gradients intact, nothing left behind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graphprune.errors import PlanError
from graphprune.graph import Axis, Block, DependencyGraph, Group, MaskSite, Member
from graphprune.masking import MaskSet, masked
from graphprune.plan import PrunePlan


class Net(nn.Module):
    """An MLP, and a router over four experts whose matrices are one parameter."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.router = Router()
        self.experts = Experts()

    def forward(self, x):
        return self.experts(self.down(F.silu(self.up(x))), self.router(x))


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        x.softmax(-1)  # a call of the same function that has nothing to do with the experts
        return F.softmax(self.linear(x), dim=-1)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 5))
        self.out = nn.Parameter(torch.randn(4, 5, 6))

    def forward(self, x, weights):
        if torch.isnan(x).any():
            raise ValueError("not a number")
        hidden = torch.einsum("bi,eij->bej", x, self.weight)
        return torch.einsum("bej,eji,be->bi", hidden, self.out, weights)


ONE = (Block(start=0, unit_stride=1),)


def whole(size, **more):
    return {"size": size, "length": size, "blocks": ONE, **more}


GRAPH = DependencyGraph(
    shapes={},
    groups=(
        Group(
            name="mlp",
            role="mlp.channel",
            layer=0,
            size=8,
            members=(
                Member(tensor="up.weight", dim=0, **whole(8)),
                Member(tensor="up.bias", dim=0, **whole(8)),
                Member(tensor="down.weight", dim=1, consumes=True, **whole(8)),
            ),
            sites=(MaskSite(kind="input", module="down", axis=Axis(**whole(8))),),
        ),
        Group(
            name="experts",
            role="moe.expert",
            layer=0,
            size=4,
            minimum=2,
            members=(
                Member(tensor="router.linear.weight", dim=0, **whole(4)),
                Member(tensor="experts.weight", dim=0, **whole(4)),
                Member(tensor="experts.out", dim=0, **whole(4)),
            ),
            sites=(MaskSite(kind="logits", module="router", function="softmax", call=1, axis=Axis(**whole(4))),),
        ),
        Group(
            name="channels",
            role="moe.channel",
            layer=0,
            size=5,
            members=(
                Member(tensor="experts.weight", dim=2, **whole(5)),
                Member(tensor="experts.out", dim=1, consumes=True, **whole(5)),
            ),
            sites=(MaskSite(kind="weight", module="experts.out", dim=1, axis=Axis(**whole(5))),),
        ),
        Group(
            name="two",  # a second group through the same tensor
            role="moe.out",
            layer=0,
            size=3,
            members=(Member(tensor="experts.out", dim=2, size=3, length=6, blocks=(Block(start=0, unit_stride=2),)),),
            sites=(
                MaskSite(
                    kind="weight",
                    module="experts.out",
                    dim=2,
                    axis=Axis(size=3, length=6, blocks=(Block(start=0, unit_stride=2),)),
                ),
            ),
        ),
        Group(name="nowhere", role="mlp.channel", layer=0, size=3, members=()),
    ),
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def x():
    return torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def expected(net, x, *, mlp=(), experts=(), channels=(), outputs=()):
    """Computed directly: zeros in the hidden activations, -inf in the logits, zeros in the weights."""
    hidden = F.silu(F.linear(x, net.up.weight, net.up.bias))
    hidden[:, list(mlp)] = 0
    y = F.linear(hidden, net.down.weight, net.down.bias)
    logits = F.linear(x, net.router.linear.weight)
    logits[:, list(experts)] = float("-inf")
    out = net.experts.out.detach().clone()
    out[:, list(channels)] = 0
    out[:, :, list(outputs)] = 0
    weights = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    return torch.einsum("bi,eij,ejk,be->bk", y, net.experts.weight, out, weights)


def plan(**removed):
    return PrunePlan.remove(GRAPH, removed)


@pytest.mark.parametrize(
    ("removed", "direct"),
    [
        ({"mlp": [0, 5]}, {"mlp": [0, 5]}),
        ({"experts": [1, 3]}, {"experts": [1, 3]}),
        ({"channels": [4]}, {"channels": [4]}),
        ({"mlp": [7], "experts": [0], "channels": [0, 2]}, {"mlp": [7], "experts": [0], "channels": [0, 2]}),
        ({"channels": [1], "two": [0, 2]}, {"channels": [1], "outputs": [0, 4]}),
        ({}, {}),
    ],
)
def test_a_masked_unit_is_silent(net, x, removed, direct):
    with torch.no_grad():
        before = net(x)
        with masked(net, plan(**removed), GRAPH):
            torch.testing.assert_close(net(x), expected(net, x, **direct))
            torch.testing.assert_close(net(x), expected(net, x, **direct))  # calls are counted per forward
        assert torch.equal(net(x), before)
    if removed:
        assert not torch.allclose(before, expected(net, x, **direct))


def test_nothing_is_left_on_the_model(net, x):
    names = [name for name, _ in net.named_parameters()]
    with masked(net, plan(mlp=[0], experts=[0], channels=[0], two=[0]), GRAPH):
        net(x)
        assert [name for name, _ in net.named_parameters()] == names
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_an_exception_in_the_forward_restores_the_parameters(net, x):
    weights = dict(net.named_parameters())
    with masked(net, plan(experts=[0], channels=[0], two=[1]), GRAPH):
        with pytest.raises(ValueError, match="not a number"):
            net(x * float("nan"))
        after = dict(net.named_parameters())
        assert list(after) == list(weights)
        assert all(after[name] is weights[name] for name in weights)
        torch.testing.assert_close(net(x), expected(net, x, experts=[0], channels=[0], outputs=[2]))


def test_gradients_reach_the_original_parameters_and_only_their_kept_slices(net, x):
    with masked(net, plan(mlp=[2], experts=[1], channels=[3]), GRAPH):
        net(x).square().sum().backward()
    assert net.experts.out.grad[:, 3].abs().max() == 0
    assert net.experts.out.grad[1].abs().max() == 0
    assert net.down.weight.grad[:, 2].abs().max() == 0
    assert net.up.weight.grad[2].abs().max() == 0
    assert net.router.linear.weight.grad[1].abs().max() == 0
    kept = net.experts.out.grad[[0, 2, 3]][:, [0, 1, 2, 4]]
    assert (kept.abs().amax(dim=(1, 2)) > 0).all()


def test_masks_can_be_changed_while_attached(net, x):
    masks = MaskSet(net, GRAPH, ["mlp", "channels"])
    with torch.no_grad(), masks:
        torch.testing.assert_close(net(x), expected(net, x))
        assert not net.down._forward_pre_hooks  # a group that keeps everything costs nothing
        masks.set("mlp", [1])
        torch.testing.assert_close(net(x), expected(net, x, mlp=[1]))
        masks.set("mlp", [1, 4])
        masks.set("channels", [0])
        torch.testing.assert_close(net(x), expected(net, x, mlp=[1, 4], channels=[0]))
        assert masks.removed("mlp") == (1, 4)
        assert masks.masks["mlp"].tolist() == [1, 0, 1, 1, 0, 1, 1, 1]
        masks.set("mlp", [])
        torch.testing.assert_close(net(x), expected(net, x, channels=[0]))
    torch.testing.assert_close(net(x), expected(net, x))


def test_an_argument_passed_by_name_is_masked_too(net, x):
    hidden = torch.randn(3, 8, dtype=torch.float64)
    with masked(net, plan(mlp=[0]), GRAPH):
        by_name = net.down(input=hidden)
    assert torch.equal(by_name, net.down(hidden * torch.tensor([0.0] + [1.0] * 7)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_take_the_dtype_of_what_they_mask(net, x, dtype):
    net = net.to(dtype)
    with masked(net, plan(mlp=[0], channels=[1], experts=[1]), GRAPH):
        assert net(x.to(dtype)).dtype == dtype


def test_masks_made_in_inference_mode_can_be_trained_through(net, x):
    with masked(net, plan(mlp=[0], channels=[1]), GRAPH):
        with torch.inference_mode():
            net(x)
        net(x).sum().backward()
    assert net.up.weight.grad is not None


def test_lora_layers_are_masked_with_their_adapters(x):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = Net()
    config = peft.LoraConfig(r=2, target_modules=["up", "down"], init_lora_weights=False)
    model = peft.get_peft_model(net, config)
    with torch.no_grad(), masked(model, plan(mlp=[0, 3]), GRAPH):
        got = model(x.float())
    merged = model.merge_and_unload()
    torch.testing.assert_close(got, expected(merged, x.float(), mlp=[0, 3]))


def test_a_weight_mask_covers_the_low_rank_factors(x):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    site = MaskSite(kind="weight", module="up.weight", dim=0, axis=Axis(**whole(8)))
    graph = DependencyGraph(shapes={}, groups=(Group(name="g", role="r", layer=0, size=8, members=(), sites=(site,)),))
    config = peft.LoraConfig(r=2, target_modules=["up"], init_lora_weights=False)
    model = peft.get_peft_model(Net(), config)
    with torch.no_grad(), masked(model, PrunePlan.remove(graph, {"g": [5]}), graph):
        got = model.base_model.model.up(x.float())
    merged = model.merge_and_unload()
    want = merged.up(x.float())
    want[:, 5] = merged.up.bias[5]
    torch.testing.assert_close(got, want)


def test_a_bare_parameter_with_lora_is_masked_as_a_whole(x):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.out"], init_lora_weights=False)
    model = peft.get_peft_model(Net(), config)
    with torch.no_grad(), masked(model, plan(channels=[1, 2]), GRAPH):
        got = model(x.float())
        again = model(x.float())
    merged = model.merge_and_unload()
    torch.testing.assert_close(got, expected(merged, x.float(), channels=[1, 2]))
    assert torch.equal(got, again)


def test_a_group_without_a_site_cannot_be_masked(net):
    with (
        pytest.raises(PlanError, match=r"(?s)cannot be masked.*'nowhere'"),
        masked(net, plan(nowhere=[0], mlp=[1]), GRAPH),
    ):
        pass
    with pytest.raises(PlanError, match="unknown group 'mpl'"):
        MaskSet(net, GRAPH, ["mpl"])


def test_a_plan_of_another_graph_is_refused(net):
    other = DependencyGraph(shapes={"up.weight": (1, 1)}, groups=GRAPH.groups)
    with pytest.raises(PlanError, match="fingerprint"), masked(net, plan(mlp=[1]), other):
        pass


def test_units_outside_the_group_are_refused(net):
    masks = MaskSet(net, GRAPH, ["mlp"])
    with pytest.raises(PlanError, match=r"units 0\.\.7, got \[9\]"):
        masks.set("mlp", [9])
    with pytest.raises(PlanError, match="not in this mask set"):
        masks.set("experts", [0])
