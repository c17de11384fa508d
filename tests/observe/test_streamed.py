"""Scores taken inside the backward pass, against gradients that were kept and against direct sums."""

import gc
import itertools
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from graphprune.errors import CriterionError
from graphprune.importance import Signal, build
from graphprune.observe import Observer

TAYLORS = [
    {"name": "taylor", "order": order, "vectorize": vectorize, "power": power}
    for order, vectorize, power in itertools.product(["first", "second"], [False, True], [1, 2])
]


def scores(model, graph, criterion, batches, *, streamed, scale=1.0):
    """The scores of all groups for the mean loss over batches, with gradients kept or not."""
    observer = Observer(model, graph, graph.groups, criterion.signals, criterion if streamed else None)
    with observer as seen:
        for ids in batches:
            (model(ids, labels=ids).loss * scale / len(batches)).backward()
        seen.loss_scale = scale
        assert seen.nonfinite() is None
        return {group.name: criterion.score(group, seen) for group in graph.groups}


@pytest.mark.parametrize("options", TAYLORS, ids=str)
def test_one_backward_gives_what_kept_gradients_give(lm, graph, ids, options):
    criterion = build(options)
    assert criterion.streams(1)
    kept, streamed = (scores(lm, graph, criterion, [ids], streamed=way) for way in (False, True))
    assert all(float(kept[name].abs().sum()) > 0 for name in kept)
    torch.testing.assert_close(streamed, kept)


@pytest.mark.parametrize(("order", "power"), [("first", 1), ("first", 2), ("second", 1)])
def test_several_backwards_give_the_mean_of_their_scores(lm, graph, ids, order, power):
    """Against sums over gradients of autograd's own, in float64."""
    criterion = build({"name": "taylor", "order": order, "power": power, "mean_of": "batch"})
    assert criterion.streams(3)
    found = scores(lm, graph, criterion, ids.split(1), streamed=True)
    parameters = {n: p.requires_grad_() for n, p in lm.named_parameters()}
    expected = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in graph.groups}
    for sample in ids.split(1):
        loss = lm(sample, labels=sample).loss
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        terms = {
            n: (p * g if order == "first" else p * g * g * p).detach().abs() ** power / 3
            for (n, p), g in zip(parameters.items(), grads, strict=True)
            if g is not None
        }
        for group in graph.groups:
            for m in group.members:
                if m.tensor in terms:
                    for unit in range(group.size):
                        expected[group.name][unit] += terms[m.tensor].index_select(m.dim, m.indices(unit)).sum()
    torch.testing.assert_close(found, {name: e.float() for name, e in expected.items()})


def test_a_mean_of_gradients_is_not_taken_of_scores():
    first, second = build("taylor"), build({"name": "taylor", "order": "second"})
    mixed = build({"name": "taylor", "order": "mixed", "mean_of": "batch"})
    assert first.streams(1) and not first.streams(2)
    assert second.streams(2)
    assert not build({"name": "taylor", "order": "second", "power": 2}).streams(2)
    assert not mixed.streams(1)


@pytest.mark.parametrize("options", [o for o in TAYLORS if not o["vectorize"]], ids=str)
@pytest.mark.parametrize("streamed", [False, True])
def test_scores_do_not_carry_the_loss_scale(lm, graph, ids, options, streamed):
    criterion = build(options)
    plain = scores(lm, graph, criterion, [ids], streamed=streamed)
    torch.testing.assert_close(scores(lm, graph, criterion, [ids], streamed=streamed, scale=1024.0), plain)


def test_gradients_are_freed_one_by_one(lm, graph, ids):
    """When a gradient is scored, none of those before it is alive; afterwards none is left anywhere."""
    criterion, born = build("taylor"), []
    judge = criterion.score_member

    def watching(member, seen):
        gradient = seen.gradient(member.tensor)
        gc.collect()
        others = [ref() for ref in born if ref() is not None and ref() is not gradient]
        assert not others
        born.append(weakref.ref(gradient))
        return judge(member, seen)

    criterion.score_member = watching
    with Observer(lm, graph, graph.groups, criterion.signals, criterion) as seen:
        lm(ids, labels=ids).loss.backward()
        assert len({id(ref) for ref in born}) > 5
        assert all(p.grad is None for p in lm.parameters())
        assert seen.member_scores(graph.by_name["mlp/mlp.channel"]) is not None
        with pytest.raises(CriterionError, match="none was kept"):
            seen.gradient("mlp.up.weight")
    assert not any(p.requires_grad for p in lm.parameters())


def test_recomputed_activations_change_nothing(lm, graph, ids):
    criterion, forward = build("taylor"), lm.mlp.forward
    plain = scores(lm, graph, criterion, [ids], streamed=True)
    lm.mlp.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    torch.testing.assert_close(scores(lm, graph, criterion, [ids], streamed=True), plain)


def test_the_observer_keeps_gradients_only_where_it_must(lm, graph):
    def held(criterion, backwards):
        return Observer.for_criterion(lm, graph, graph.groups, build(criterion), backwards)._gradients is not None

    assert not held("taylor", 1)
    assert held("taylor", 2)
    assert not held({"name": "taylor", "mean_of": "batch"}, 2)
    assert not held("magnitude", 1)
    assert held({"name": "torch_pruning", "importance": "GroupTaylorImportance"}, 1)


def test_nothing_is_told_before_a_batch_has_run(lm, graph):
    criterion = build("taylor")
    with (
        Observer(lm, graph, graph.groups, {Signal.WEIGHT_GRADIENT}, criterion) as seen,
        pytest.raises(CriterionError, match="before any batch"),
    ):
        seen.member_scores(graph.groups[0])
