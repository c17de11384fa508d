"""Magnitudes against direct sums in float64."""

import pytest
import torch

from graphprune.importance import Signal, build


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("index", range(4))
def test_the_power_of_the_norm_of_all_that_goes(toy, index, p):
    group, weights = toy.groups[index], toy.tensors(1)
    expected = toy.unit_sums(group, {n: w.abs() ** p for n, w in weights.items()}).sum(0)
    scores = build({"name": "magnitude", "p": p}).score(group, toy.Seen(weights))
    torch.testing.assert_close(scores, expected.float())


def test_it_ranks_as_the_group_norm_does(toy):
    weights = toy.tensors(1)
    slices = [
        torch.cat([weights[m.tensor].index_select(m.dim, m.indices(u)).flatten() for m in toy.grouped.members])
        for u in range(3)
    ]
    norms = torch.stack([s.norm() for s in slices])
    scores = build({"name": "magnitude", "p": 2}).score(toy.grouped, toy.Seen(weights))
    torch.testing.assert_close(scores, norms.square().float())


def test_max_over_tensors(toy):
    weights = toy.tensors(1)
    expected = toy.unit_sums(toy.grouped, {n: w.abs() for n, w in weights.items()}).max(0).values
    scores = build({"name": "magnitude", "p": 1, "aggregate": "max"}).score(toy.grouped, toy.Seen(weights))
    torch.testing.assert_close(scores, expected.float())


def test_a_lookup_table_and_an_integer_buffer(toy):
    table, counts = torch.randn(6, 4, dtype=torch.bfloat16), torch.tensor([1, -2, 0, 3])
    group = toy.experts.model_copy(update={"members": (toy.member("table", 1, 4, 4), toy.member("counts", 0, 4, 4))})
    scores = build("magnitude").score(group, toy.Seen({"table": table, "counts": counts}))
    torch.testing.assert_close(scores, table.float().abs().sum(0) + counts.abs())


def test_it_needs_weights_alone():
    assert build("magnitude").signals == {Signal.WEIGHT}
