"""Plans that were made one after the other, as one: the original is cut once, and the tensors are the same."""

import copy

import pytest
import torch

import graphprune as gp
from graphprune.compose import composed
from graphprune.errors import PlanError
from graphprune.plan import PrunePlan
from tests.decoders import DECODERS, tiny, tokens

ROUNDS = {
    "depth, width, depth": [["layer"], ["mlp.channel", "moe.channel"], ["layer"], ["attention.group"]],
    "heads, experts": [["attention.group"], ["moe.expert"], ["attention.query", "mlp.channel"], ["layer"]],
    "the same again": [["mlp.channel", "attention.group"], ["mlp.channel", "attention.group"]],
    "the stream between others": [["mlp.channel"], ["hidden"], ["layer", "attention.group"]],
}


def some(graph, roles, seed):
    """A plan that removes some units, no block of them, of every group of these roles."""
    generator = torch.Generator().manual_seed(seed)
    units = {}
    for group in graph.select(role=roles):
        most = min(group.size - group.minimum, max(1, group.size // 4))
        if group.exact and most > 0 and not group.essential:
            units[group.name] = torch.randperm(group.size, generator=generator)[:most].tolist()
    return PrunePlan.remove(graph, units)


def in_rounds(model, rounds):
    """Prunes ``model`` again and again; the plans."""
    plans = []
    for number, roles in enumerate(rounds):
        graph = gp.trace(model)
        plan = some(graph, roles, number)
        if plan.removed:
            plans.append(plan)
            gp.reshape(model, plan, graph)
    return plans


CASES = [
    ("llama", "depth, width, depth"),
    ("gpt2", "depth, width, depth"),
    ("mixtral", "heads, experts"),
    ("falcon-grouped", "heads, experts"),
    ("olmo2", "the same again"),
    ("gemma2", "the stream between others"),
]
ALL = [(name, rounds) for name in DECODERS for rounds in ROUNDS if (name, rounds) not in CASES]


@pytest.mark.parametrize(("name", "rounds"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)])
def test_the_original_cut_once_has_the_tensors_of_the_model_cut_again_and_again(name, rounds):
    layers = {"n_layer" if "n_layer" in DECODERS[name][1] else "num_hidden_layers": 5}
    model = tiny(name, **layers)
    model.config._experts_implementation = "eager"
    once = copy.deepcopy(model)
    plans = in_rounds(model, ROUNDS[rounds])
    whole = gp.compose(once, plans)
    gp.reshape(once, whole)
    mine, theirs = dict(model.named_parameters()), dict(once.named_parameters())
    assert mine.keys() == theirs.keys()
    for tensor, weight in mine.items():
        if weight.ndim == 1 and "norm" in tensor:  # scaled once instead of twice, where its axis was cut twice
            torch.testing.assert_close(weight, theirs[tensor], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(weight, theirs[tensor]), tensor
    with torch.no_grad():
        torch.testing.assert_close(once(tokens()).logits, model(tokens()).logits, rtol=0, atol=1e-5)


def test_the_plan_speaks_of_the_original():
    model = tiny("llama", num_hidden_layers=4)
    graph = gp.trace(model)
    original = copy.deepcopy(model)
    first = PrunePlan.remove(graph, {"model.layers/layer": [1], "model.layers.2.mlp/mlp.channel": [0, 3]})
    first = first.model_copy(update={"notes": ("first",)})
    gp.reshape(model, first, graph)
    second = PrunePlan.remove(gp.trace(model), {"model.layers/layer": [0], "model.layers.1.mlp/mlp.channel": [0, 1, 2]})
    whole = gp.compose(original, [first, second.model_copy(update={"notes": ("second",)})])
    assert whole.removed == {
        "model.layers/layer": (0, 1),
        "model.layers.2.mlp/mlp.channel": (0, 1, 2, 3, 4),
    }
    assert whole.fingerprint == graph.fingerprint
    assert whole.notes == ("first", "second")
    assert gp.compose(original, [first]) == first


def test_the_model_is_left_as_it_is_and_needs_no_weights():
    model = tiny("gpt2", n_layer=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plans = in_rounds(copy.deepcopy(model), ROUNDS["depth, width, depth"])
    whole = gp.compose(model, plans)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert gp.compose(empty, plans) == whole


def test_a_plan_that_does_not_follow_is_named():
    model = tiny("llama")
    plans = in_rounds(copy.deepcopy(model), [["mlp.channel"], ["attention.group"], ["mlp.channel"]])
    with pytest.raises(PlanError, match=r"plan 2 of 2 is not one for what plan 1 leaves of the model: .*fingerprint"):
        gp.compose(model, [plans[0], plans[2]])
    with pytest.raises(PlanError, match=r"plan 1 of 1 is not one for the model: .*fingerprint"):
        gp.compose(model, [plans[1]])
    with pytest.raises(PlanError, match=r"made for the model before all pruning: it may be composed already"):
        gp.compose(model, [plans[0], gp.compose(model, plans[:2])])
    with pytest.raises(PlanError, match="expected one plan at least, got none"):
        gp.compose(model, [])


def test_groups_that_the_first_graph_has_not_are_a_reason_to_cut_twice():
    """A later graph may divide a model otherwise; then no single plan does the same."""
    model = tiny("llama")
    start = gp.trace(model)
    first = PrunePlan.remove(start, {"model.layers.0.mlp/mlp.channel": [1]})
    gp.reshape(model, first, start)
    then = gp.trace(model)
    groups = tuple(
        g.model_copy(update={"name": "odd/mlp.channel"}) if g.name == "model.layers.0.mlp/mlp.channel" else g
        for g in then.groups
    )
    other = then.model_copy(update={"groups": groups})
    second = PrunePlan.remove(other, {"odd/mlp.channel": [0]})
    with pytest.raises(PlanError, match=r"prunes 'odd/mlp.channel' of 39 units, .* has no such group\. Carry them out"):
        composed(start, first, other, second)


def test_other_entries_of_a_tensor_are_noticed():
    """Units are found by name and order; were these other ones, tensors would tell."""
    model = tiny("llama")
    start = gp.trace(model)
    first = PrunePlan.remove(start, {"model.layers.0.mlp/mlp.channel": [1]})
    gp.reshape(model, first, start)
    then = gp.trace(model)
    swapped = {"model.layers.1.mlp/mlp.channel": "model.layers.2.mlp/mlp.channel"}
    swapped |= {new: old for old, new in swapped.items()}
    groups = tuple(g.model_copy(update={"name": swapped.get(g.name, g.name)}) for g in then.groups)
    other = then.model_copy(update={"groups": groups})
    second = PrunePlan.remove(other, {"model.layers.1.mlp/mlp.channel": [0]})
    with pytest.raises(
        PlanError, match=r"cannot be one: of dimension 0 of 'model\.layers\.1\.mlp\.gate_proj\.weight' 40"
    ):
        composed(start, first, other, second)
