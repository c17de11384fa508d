"""Random scores are a function of the seed and the group's name."""

import torch

from graphprune.importance import build


def test_they_do_not_depend_on_order_or_on_the_global_generator(toy):
    first = {g.name: build("random").score(g, toy.Seen({})) for g in toy.groups}
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = {g.name: build("random").score(g, toy.Seen({})) for g in reversed(toy.groups)}
    assert torch.equal(torch.get_rng_state(), state)
    for name, scores in first.items():
        assert torch.equal(scores, second[name])


def test_seeds_and_groups_differ(toy):
    group = toy.grouped.model_copy(update={"size": 1000})
    other = group.model_copy(update={"name": "layer/other"})
    scores = build("random").score(group, toy.Seen({}))
    assert not torch.equal(scores, build({"name": "random", "seed": 1}).score(group, toy.Seen({})))
    assert not torch.equal(scores, build("random").score(other, toy.Seen({})))
    assert 0 <= scores.min() < 0.01
    assert 0.99 < scores.max() < 1
    assert scores.shape == (1000,)
