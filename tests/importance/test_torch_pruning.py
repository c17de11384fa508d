"""The adapter gives what torch-pruning itself gives on the groups of its own dependency graph."""

import pytest
import torch
import torch_pruning as tp
from torch import nn

from graphprune.errors import CriterionError
from graphprune.graph import Group
from graphprune.importance import Signal, TorchPruning, build
from graphprune.importance.torch_pruning import TorchPruningOptions

ALL = {
    "GroupMagnitudeImportance": {Signal.WEIGHT},
    "LAMPImportance": {Signal.WEIGHT},
    "FPGMImportance": {Signal.WEIGHT},
    "GroupTaylorImportance": {Signal.WEIGHT, Signal.WEIGHT_GRADIENT},
    "GroupHessianImportance": {Signal.WEIGHT, Signal.SQUARED_GRADIENT},
}
REDUCTIONS = ["mean", "sum", "max", "prod", "first"]


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.down = nn.Linear(8, 3)

    def forward(self, x):
        return self.down(self.norm(self.up(x)).relu())


@pytest.fixture
def mlp():
    model = Mlp()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model(torch.randn(1, 5)).square().sum().backward()
    return model


def seen_of(toy, model):
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    return toy.Seen(
        {n: p.detach() for n, p in model.named_parameters()},
        gradients=gradients,
        squares={n: g.square() for n, g in gradients.items()},
        holders={n: model.get_submodule(n.rpartition(".")[0]) for n, _ in model.named_parameters()},
    )


def group_of(toy, size=8, block=(0, 1)):
    names = ("up.weight", "up.bias", "norm.weight", "norm.bias")
    members = [toy.member(n, 0, size, 8, block) for n in names]
    members.append(toy.member("down.weight", 1, size, 8, block, consumes=True))
    return Group(name="mlp", role="mlp.channel", layer=0, size=size, members=tuple(members))


def original(model, importance):
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=torch.randn(1, 5))
    group = graph.get_pruning_group(model.up, tp.prune_linear_out_channels, idxs=list(range(8)))
    if isinstance(importance, tp.importance.GroupHessianImportance):
        importance.zero_grad()
        importance.accumulate_grad(model)
    return importance(group)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scores_are_the_originals(toy, mlp, name, reduction):
    arguments = {"group_reduction": reduction}
    criterion = build({"name": "torch_pruning", "importance": name, "arguments": arguments})
    scores = criterion.score(group_of(toy), seen_of(toy, mlp))
    torch.testing.assert_close(scores, original(mlp, getattr(tp.pruner.importance, name)(**arguments)))
    assert criterion.signals == ALL[name]


@pytest.mark.parametrize("fold", ["mean", "sum"])
def test_units_of_several_channels_are_folded_as_torch_pruning_folds_heads(toy, mlp, fold):
    arguments = {"p": 1, "bias": True, "normalizer": None}
    channels = original(mlp, tp.importance.GroupMagnitudeImportance(**arguments))
    criterion = build({"name": "torch_pruning", "arguments": arguments, "fold": fold})
    scores = criterion.score(group_of(toy, 4, (0, 2, (2, 1))), seen_of(toy, mlp))
    by_head = channels.view(4, -1)
    torch.testing.assert_close(scores, by_head.mean(1) if fold == "mean" else by_head.sum(1))


def test_interleaved_units_keep_their_indices(toy, mlp):
    channels = original(mlp, tp.importance.GroupTaylorImportance())
    criterion = build({"name": "torch_pruning", "importance": "GroupTaylorImportance"})
    scores = criterion.score(group_of(toy, 4, (0, 1, (2, 4))), seen_of(toy, mlp))
    torch.testing.assert_close(scores, channels.view(2, 4).mean(0))


@pytest.mark.parametrize("index", range(4))
def test_members_with_more_channels_per_unit_fused_tensors_and_stacks(toy, index):
    """With sums everywhere the result is the sum over all elements of matrices, whatever the lots."""
    group, weights = toy.groups[index], toy.tensors(1)
    arguments = {"p": 1, "group_reduction": "sum", "normalizer": None}
    criterion = build({"name": "torch_pruning", "arguments": arguments, "fold": "sum"})
    expected = toy.unit_sums(group, {n: w.abs() for n, w in weights.items()}, [n for n in weights if "bias" not in n])
    torch.testing.assert_close(criterion.score(group, toy.Seen(weights)), expected.sum(0).float())


def test_an_importance_object_of_ones_own(toy, mlp):
    class Channels(tp.importance.Importance):
        def __call__(self, group):
            return torch.tensor(group[0].root_idxs, dtype=torch.float32)

    criterion = TorchPruning(TorchPruningOptions(), Channels())
    assert criterion.score(group_of(toy), seen_of(toy, mlp)).tolist() == list(range(8))


def test_random_importance_has_the_right_size(toy, mlp):
    criterion = build({"name": "torch_pruning", "importance": "RandomImportance"})
    assert criterion.score(group_of(toy, 4, (0, 2, (2, 1))), seen_of(toy, mlp)).shape == (4,)


def test_a_group_that_torch_pruning_cannot_score_is_an_error(toy):
    group = Group(name="g", role="r", layer=0, size=4, members=(toy.member("b", 0, 4, 4),))
    with pytest.raises(CriterionError, match=r"GroupMagnitudeImportance .* shape \(4,\) for group 'g', got None"):
        build("torch_pruning").score(group, toy.Seen({"b": torch.ones(4)}))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"importance": "Magnitude"}, "importance 'Magnitude' does not exist; known: BNScaleImportance, FPGM"),
        ({"importance": "OBDCImportance"}, "'OBDCImportance' needs hooks of its own in the model"),
        ({"arguments": {"q": 1}}, "GroupMagnitudeImportance refuses {'q': 1}: .*unexpected keyword argument 'q'"),
    ],
)
def test_wrong_options_are_refused_when_the_criterion_is_built(options, text):
    with pytest.raises(CriterionError, match=text):
        build({"name": "torch_pruning", **options})
