"""The gate's gradient is the derivative of the loss along the mask: finite differences in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from graphprune.errors import CriterionError
from graphprune.graph import MaskSite
from graphprune.importance.base import Signal
from graphprune.observe import Observer
from tests.decoders import tiny, tokens

EXPERTS = 3


def loss_of(model, ids):
    """In the model's precision; transformers' own loss is in float32."""
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradients(model, graph, groups, ids):
    with Observer(model, graph, groups, {Signal.MASK_GRADIENT}) as seen:
        loss_of(model, ids).backward()
        return {g.name: seen.mask_gradient(g).clone() for g in groups}


def difference(model, ids, change, eps=1e-5):
    """(L(1 + ε) − L(1 − ε)) / 2ε, with `change(model, factor)` applying the gate to a copy's weights."""
    losses = []
    for factor in (1 + eps, 1 - eps):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            change(changed, factor)
            losses.append(loss_of(changed, ids))
    return (losses[0] - losses[1]) / (2 * eps)


def scaled(name, dim, indices):
    def change(model, factor):
        model.get_parameter(name).index_copy_(
            dim, indices, model.get_parameter(name).index_select(dim, indices) * factor
        )

    return change


def test_an_input_site(lm, graph, ids):
    group = graph.by_name["mlp/mlp.channel"]
    found = gradients(lm, graph, [group], ids)[group.name]
    for unit in range(group.size):
        expected = difference(lm, ids, scaled("mlp.down.weight", 1, group.members[-1].indices(unit)))
        torch.testing.assert_close(found[unit], expected, rtol=1e-6, atol=1e-10)


def test_a_weight_site(lm, graph, ids):
    group = graph.by_name["moe/moe.channel"]
    found = gradients(lm, graph, [group], ids)[group.name]
    for unit in range(group.size):
        expected = difference(lm, ids, scaled("moe.down", 2, torch.tensor([unit])))
        torch.testing.assert_close(found[unit], expected, rtol=1e-6, atol=1e-10)


def test_a_logits_site_is_gated_by_the_logarithm(lm, graph, ids):
    group = graph.by_name["moe/moe.expert"]
    found = gradients(lm, graph, [group], ids)[group.name]
    for unit in range(group.size):

        def shifted(model, factor, unit=unit):
            model.moe.router.bias[unit] += math.log(factor)

        torch.testing.assert_close(found[unit], difference(lm, ids, shifted), rtol=1e-6, atol=1e-10)


def test_several_sites_and_groups_at_once(lm, graph, ids):
    channel = graph.by_name["mlp/mlp.channel"]
    both = channel.model_copy(update={"sites": (*channel.sites, MaskSite(**channel.sites[0].model_dump()))})
    alone = gradients(lm, graph, [channel], ids)[channel.name]
    found = gradients(lm, graph, [both, graph.by_name["moe/moe.expert"]], ids)
    torch.testing.assert_close(found[both.name], 2 * alone)
    assert found["moe/moe.expert"].abs().max() > 0


def test_the_forward_pass_is_not_changed(lm, graph, ids):
    groups = [g for g in graph.groups if g.sites]
    with Observer(lm, graph, groups, {Signal.MASK_GRADIENT}):
        gated = lm(ids).logits
    assert torch.equal(gated, lm(ids).logits)


def test_a_gradient_of_several_batches_is_the_sum(lm, graph, ids):
    group = graph.by_name["mlp/mlp.channel"]
    whole = gradients(lm, graph, [group], ids)[group.name]
    with Observer(lm, graph, [group], {Signal.MASK_GRADIENT}) as seen:
        for row in ids:
            (lm(row[None], labels=row[None]).loss / len(ids)).backward()
        torch.testing.assert_close(seen.mask_gradient(group), whole)


def test_a_group_without_a_place_for_a_mask(lm, graph):
    with pytest.raises(CriterionError, match=r"group 'hidden' has no place where .* masked, .* such as taylor"):
        Observer(lm, graph, graph.groups, {Signal.MASK_GRADIENT})


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_real_attention_groups(name):
    import graphprune as gp

    model = tiny(name).double().eval()
    graph, ids = gp.trace(model), tokens()
    group = next(g for g in graph.select(role="attention.group", layers=1))
    site = group.sites[0]
    assert site.kind == "input"
    found = gradients(model, graph, [group], ids)[group.name]
    consumer = group.consumers[0]
    assert consumer.tensor == f"{site.module}.weight"
    for unit in (0, group.size - 1):
        # Norms are computed in float32 whatever the model's precision, so the step cannot be tiny.
        change = scaled(consumer.tensor, consumer.dim, consumer.indices(unit))
        torch.testing.assert_close(found[unit], difference(model, ids, change, eps=1e-2), rtol=3e-3, atol=1e-6)


def test_real_experts():
    import graphprune as gp

    model = tiny("mixtral").double().eval()
    model.set_experts_implementation("eager")  # the grouped kernels know no float64
    graph, ids = gp.trace(model), tokens()
    group = next(iter(graph.select(role="moe.expert", layers=0)))
    found = gradients(model, graph, [group], ids)[group.name]
    assert group.sites[0].kind == "logits"
    assert found.shape == (5,)
    assert (found != 0).any()
    # Softmax weights do not change if all experts are gated alike, so the derivatives add up to nothing.
    torch.testing.assert_close(found.sum(), torch.zeros((), dtype=torch.float64), atol=1e-6, rtol=0)


def test_routing_scores_that_only_choose_have_no_mask_gradient(lm, graph, ids):
    """A top-k whose values are not used: the loss is constant in the gate but for jumps."""

    def choose(x, forward=lm.moe.router.forward):
        weights = forward(x)
        return weights.gather(-1, weights.topk(EXPERTS, dim=-1).indices.sort(dim=-1).values)

    lm.moe.router.forward = choose
    group = graph.by_name["moe/moe.expert"]
    site = group.sites[0].model_copy(update={"function": "topk"})
    group = group.model_copy(update={"sites": (site,)})
    with pytest.raises(CriterionError, match=r"'moe/moe\.expert' is zero .* only choose units .* such as taylor"):
        gradients(lm, graph, [graph.by_name["mlp/mlp.channel"], group], ids)


def test_of_a_softmax_and_the_choice_behind_it_one_is_gated(lm, graph, ids):
    def choose(x, forward=lm.moe.router.forward):
        weights = forward(x)
        best = weights.topk(2, dim=-1)
        return torch.zeros_like(weights).scatter(-1, best.indices, best.values)

    lm.moe.router.forward = choose
    group = graph.by_name["moe/moe.expert"]
    topk = group.sites[0].model_copy(update={"function": "topk"})
    both = group.model_copy(update={"sites": (*group.sites, topk)})
    assert torch.equal(gradients(lm, graph, [both], ids)[group.name], gradients(lm, graph, [group], ids)[group.name])
