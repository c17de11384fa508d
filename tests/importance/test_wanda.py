"""Structured WANDA against direct means in float64."""

import pytest
import torch

from graphprune.errors import CriterionError
from graphprune.importance import build


def observed(toy):
    weights = toy.tensors(1)
    norms = {n: torch.rand(w.shape[1], dtype=torch.float64) + 0.1 for n, w in weights.items() if w.ndim == 2}
    return toy.Seen(weights, norms=norms), {n: weights[n].abs() * x for n, x in norms.items()}


@pytest.mark.parametrize("name", ["grouped", "fused"])
def test_the_mean_over_all_elements_of_the_unit(toy, name):
    group = getattr(toy, name)
    seen, saliency = observed(toy)
    expected = []
    for u in range(group.size):
        elements = [
            saliency[m.tensor].index_select(m.dim, m.indices(u)).flatten()
            for m in group.members
            if m.tensor in saliency
        ]
        expected.append(torch.cat(elements).mean())
    torch.testing.assert_close(build("wanda").score(group, seen), torch.stack(expected).float())


def test_consumers_only(toy):
    seen, saliency = observed(toy)
    expected = saliency["o.weight"].mean(dim=0).reshape(3, 4).mean(dim=1)
    scores = build({"name": "wanda", "members": "consumers"}).score(toy.grouped, seen)
    torch.testing.assert_close(scores, expected.float())


def test_a_matrix_stored_as_inputs_by_outputs(toy):
    weight, norm = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    produce = toy.channels.model_copy(update={"members": (toy.member("w", 1, 5, 5),)})
    scores = build("wanda").score(produce, toy.Seen({"w": weight}, norms={"w": norm}))
    torch.testing.assert_close(scores, (weight.abs() * norm[:, None]).mean(0).float())

    consume = toy.channels.model_copy(update={"size": 3, "members": (toy.member("w", 0, 3, 3, consumes=True),)})
    scores = build("wanda").score(consume, toy.Seen({"w": weight}, norms={"w": norm}))
    torch.testing.assert_close(scores, (weight.abs() * norm[:, None]).mean(1).float())


def test_experts_behind_a_router_are_not_judged_by_the_router_alone(toy):
    seen, _ = observed(toy)
    with pytest.raises(CriterionError, match="cannot score group 'layer/experts': the inputs of 'up' are not observed"):
        build("wanda").score(toy.experts, seen)
    with pytest.raises(CriterionError, match=r"'layer/channels'.*'down' are not observed\. Choose taylor"):
        build("wanda").score(toy.channels, seen)


def test_a_group_without_inputs_is_an_error(toy):
    group = toy.grouped.model_copy(update={"members": (toy.grouped.members[2],)})
    with pytest.raises(CriterionError, match="'layer/attention': no matrix has observed inputs"):
        build("wanda").score(group, observed(toy)[0])


def test_norms_of_the_wrong_size_are_an_error(toy):
    seen, _ = observed(toy)
    seen.signals["norms"]["out.weight"] = torch.ones(5)
    with pytest.raises(
        CriterionError, match=r"expected 6 input norms for dimension 1 of 'out.weight' of shape \(5, 6\), got \(5,\)"
    ):
        build("wanda").score(toy.fused, seen)
