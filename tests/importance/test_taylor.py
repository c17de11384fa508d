"""LLM-Pruner's Taylor criteria against direct sums in float64."""

import itertools

import pytest
import torch

from graphprune.importance import Signal, _tiles, build


def observed(toy, dtype=torch.float64):
    weights, gradients, squares = toy.tensors(1), toy.tensors(2), {n: t**2 for n, t in toy.tensors(3).items()}
    terms = {
        "first": {n: weights[n] * gradients[n] for n in weights},
        "second": {n: weights[n] * squares[n] * weights[n] for n in weights},
    }
    terms["mixed"] = {n: terms["first"][n] - 0.5 * terms["second"][n] for n in weights}
    cast = [{n: t.to(dtype) for n, t in x.items()} for x in (weights, gradients, squares)]
    return toy.Seen(cast[0], gradients=cast[1], squares=cast[2]), terms


def by_element(toy, group, terms, power):
    return toy.unit_sums(group, {n: t.abs() ** power for n, t in terms.items()})


def by_vector(group, terms, power):
    rows = []
    for m in group.members:
        per_index = [terms[m.tensor].select(m.dim, i).sum().abs() ** power for i in range(m.length)]
        rows.append(torch.stack([sum(per_index[i] for i in m.indices(u)) for u in range(group.size)]))
    return torch.stack(rows)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    ("order", "vectorize", "power"), list(itertools.product(["first", "second", "mixed"], [False, True], [1, 2]))
)
def test_every_kind_on_every_shape(toy, index, order, vectorize, power):
    group = toy.groups[index]
    seen, terms = observed(toy)
    expected = (
        by_vector(group, terms[order], power) if vectorize else by_element(toy, group, terms[order], power)
    ).sum(0)
    criterion = build({"name": "taylor", "order": order, "vectorize": vectorize, "power": power})
    torch.testing.assert_close(criterion.score(group, seen), expected.float())


@pytest.mark.parametrize("how", ["sum", "mean", "max", "prod", "first", "last"])
def test_every_aggregation(toy, how):
    seen, terms = observed(toy)
    rows = by_element(toy, toy.grouped, terms["first"], 1)
    expected = {
        "sum": rows.sum(0),
        "mean": rows.mean(0),
        "max": rows.max(0).values,
        "prod": rows[0] * rows[1] * rows[2] * rows[3],
        "first": rows[0],
        "last": rows[3],
    }[how]
    scores = build({"name": "taylor", "aggregate": how}).score(toy.grouped, seen)
    torch.testing.assert_close(scores, expected.float())


def test_power_2_is_equation_3_of_loraprune(toy):
    seen, terms = observed(toy)
    expected = toy.unit_sums(toy.fused, {n: t**2 for n, t in terms["first"].items()}).sum(0)
    torch.testing.assert_close(build({"name": "taylor", "power": 2}).score(toy.fused, seen), expected.float())


@pytest.mark.parametrize("vectorize", [False, True])
def test_tiles_change_nothing(toy, vectorize, monkeypatch):
    seen, _ = observed(toy)
    criterion = build({"name": "taylor", "order": "mixed", "vectorize": vectorize})
    whole = [criterion.score(group, seen) for group in toy.groups]
    monkeypatch.setattr(_tiles, "_SMALLEST", 1)
    for group, expected in zip(toy.groups, whole, strict=True):
        torch.testing.assert_close(criterion.score(group, seen), expected)


def test_half_precision_does_not_overflow(toy):
    seen, terms = observed(toy, torch.float16)
    seen.signals["gradients"]["qkv.weight"] *= 1000
    seen.weights["qkv.weight"] *= 1000
    scores = build({"name": "taylor", "aggregate": "first"}).score(toy.fused, seen)
    expected = toy.unit_sums(toy.fused, {n: t.abs() for n, t in terms["first"].items()})[0] * 1e6
    torch.testing.assert_close(scores, expected.float(), rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("order", "more"),
    [
        ("first", {Signal.WEIGHT_GRADIENT}),
        ("second", {Signal.SQUARED_GRADIENT}),
        ("mixed", {Signal.WEIGHT_GRADIENT, Signal.SQUARED_GRADIENT}),
    ],
)
def test_it_asks_for_no_more_than_it_reads(order, more):
    assert build({"name": "taylor", "order": order}).signals == {Signal.WEIGHT, *more}
