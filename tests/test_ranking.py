"""gp.plan on graphs made of bare groups: no model is needed to rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graphprune.errors import NonFiniteError, PlanError, SpecError
from graphprune.export.limits import Limits
from graphprune.graph import DependencyGraph, Group
from graphprune.ranking import plan
from graphprune.schema import PruneSpec


def make_graph(layers=3, heads=8, channels=40, **heads_options):
    groups = []
    for layer in range(layers):
        head = {"role": "attention.group", "layer": layer, "size": heads, "members": (), **heads_options}
        groups.append(Group(name=f"layers.{layer}.attn/attention.group", **head))
        groups.append(
            Group(
                name=f"layers.{layer}.mlp/mlp.channel",
                role="mlp.channel",
                layer=layer,
                size=channels,
                members=(),
            )
        )
    return DependencyGraph(groups=tuple(groups), shapes={}, layers=layers)


def make_spec(*targets, **rest):
    return PruneSpec.model_validate({"targets": list(targets), **rest})


def make_scores(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in graph.groups}


def counts(plan):
    return {name: len(units) for name, units in plan.removed.items()}


MLP = {"role": "mlp.channel"}
HEADS = {"role": "attention.group"}


def test_layer_scope_removes_the_lowest_units_of_each_group():
    graph = make_graph()
    scores = make_scores(graph)
    made = plan(graph, make_spec({**MLP, "ratio": 0.25}, {**HEADS, "count": 3}), scores)
    for group in graph.groups:
        gone, kept = made.removed[group.name], made.kept(group.name)
        assert len(gone) == (10 if group.role == "mlp.channel" else 3)
        assert scores[group.name][list(gone)].max() < scores[group.name][list(kept)].min()
    assert made.fingerprint == graph.fingerprint
    assert made.notes == ()


@pytest.mark.parametrize(
    ("amount", "size", "removed"),
    [
        ({"ratio": 0.5}, 7, 3),  # floor
        ({"ratio": 0.29}, 100, 29),  # 0.29·100 is 28.999999999999996 in binary
        ({"ratio": 0.0}, 7, 0),
        ({"count": 2}, 7, 2),
        ({"keep": 2}, 7, 5),
        ({"keep": 9}, 7, 0),
    ],
)
def test_amounts(amount, size, removed):
    graph = make_graph(layers=1, channels=size)
    made = plan(graph, make_spec({**MLP, **amount}), make_scores(graph))
    assert sum(counts(made).values()) == removed


def test_ties_go_by_index_and_never_over_prune():
    graph = make_graph(layers=1)
    made = plan(graph, make_spec({**MLP, "ratio": 0.5}), {g.name: torch.ones(g.size) for g in graph.groups})
    assert made.removed == {"layers.0.mlp/mlp.channel": tuple(range(20))}


def test_role_scope_gives_layers_different_sizes_and_an_exact_total():
    graph = make_graph()
    scores = make_scores(graph)
    scores["layers.1.mlp/mlp.channel"] *= 1e-3
    made = plan(graph, make_spec({**MLP, "ratio": 0.3}, scope="role"), scores)
    assert counts(made) == {"layers.1.mlp/mlp.channel": 36}
    # One unit is left for the others to compete for once the poorest layer has reached its minimum.
    made = plan(graph, make_spec({**MLP, "ratio": 1 / 3}, scope="role"), scores)
    assert counts(made)["layers.1.mlp/mlp.channel"] == 39
    assert sum(counts(made).values()) == 40


def test_shared_pool_is_the_order_of_all_scores():
    graph = make_graph()
    scores = make_scores(graph, seed=3)
    made = plan(graph, make_spec({**MLP, "count": 8}, scope="global"), scores)
    pooled = sorted(
        (float(value), g.name, unit)
        for g in graph.select(role="mlp.channel")
        for unit, value in enumerate(scores[g.name])
    )
    expected = {(name, unit) for _, name, unit in pooled[:24]}
    assert {(name, unit) for name, units in made.removed.items() for unit in units} == expected


def test_global_scope_compares_roles_by_their_mean():
    # Head scores are a thousand times larger; pooling the raw sums would spare all heads.
    graph = make_graph()
    scores = make_scores(graph)
    target = {"role": "*", "ratio": 0.5}
    even = plan(graph, make_spec(target, scope="global"), scores)
    scaled = {n: s * (1000 if n.endswith("attention.group") else 1) for n, s in scores.items()}
    made = plan(graph, make_spec(target, scope="global"), scaled)
    assert made.removed == even.removed
    assert sum(made.summary()["attention.group"][k] for k in ("removed",)) > 0
    assert sum(counts(made).values()) == 72


def test_multiple_of_rounds_towards_keeping_more_and_says_so():
    graph = make_graph(layers=2)
    made = plan(graph, make_spec({**MLP, "ratio": 0.5, "multiple_of": 16}), make_scores(graph))
    assert counts(made) == {"layers.0.mlp/mlp.channel": 8, "layers.1.mlp/mlp.channel": 8}
    assert made.notes == ("mlp.channel: keeps 32 of 40 units where 20 were asked for (multiple_of 16) (in 2 groups)",)


def test_multiple_of_in_a_shared_pool_moves_whole_chunks():
    # 2 of 8 heads in each of 3 layers are asked for; one by one every layer would round down to nothing.
    graph = make_graph()
    target = {**HEADS, "ratio": 0.25, "multiple_of": 4}
    made = plan(graph, make_spec(target, scope="role"), make_scores(graph))
    assert list(counts(made).values()) == [4]
    assert all(size % 4 == 0 for n, size in made.sizes_after().items() if "attention" in n)


def test_minimum_of_a_group_is_respected_and_noted():
    graph = make_graph(layers=1, minimum=6)
    made = plan(graph, make_spec({**HEADS, "ratio": 0.5}), make_scores(graph))
    assert counts(made) == {"layers.0.attn/attention.group": 2}
    assert made.notes == ("attention.group: keeps 6 of 8 units where 4 were asked for (minimum 6)",)


def test_base_units_stay_removed_whatever_the_new_scores_say():
    graph = make_graph()
    spec = make_spec({**MLP, "ratio": 0.5})
    first = plan(graph, spec, make_scores(graph, 0), fraction=0.4)
    second = plan(graph, spec, make_scores(graph, 1), base=first)
    assert set(counts(first).values()) == {8}
    assert set(counts(second).values()) == {20}
    assert all(set(units) <= set(second.removed[name]) for name, units in first.removed.items())


@pytest.mark.parametrize(("fraction", "removed"), [(0.0, 0), (0.24, 0), (0.26, 1), (0.74, 1), (0.76, 2), (1.0, 2)])
def test_a_fraction_is_rounded_to_the_nearest(fraction, removed):
    graph = make_graph(layers=1, heads=4)
    made = plan(graph, make_spec({**HEADS, "ratio": 0.5}), make_scores(graph), fraction=fraction)
    assert sum(counts(made).values()) == removed


def test_base_beyond_the_amount_is_kept_and_noted():
    graph = make_graph(layers=1)
    name = "layers.0.mlp/mlp.channel"
    base = plan(graph, make_spec({**MLP, "count": 30}), make_scores(graph))
    made = plan(graph, make_spec({**MLP, "count": 10}), make_scores(graph, 1), base=base)
    assert made.removed[name] == base.removed[name]
    assert made.notes == (
        "mlp.channel: keeps 10 of 40 units where 30 were asked for (the earlier plan had removed more)",
    )


@given(
    scope=st.sampled_from(["layer", "role", "global"]),
    ratio=st.floats(0, 0.95),
    multiple=st.sampled_from([1, 4, 7]),
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_a_growing_schedule_reaches_what_one_step_reaches(scope, ratio, multiple, fractions):
    graph = make_graph(layers=2, channels=24)
    spec = make_spec({**MLP, "ratio": ratio, "multiple_of": multiple}, {**HEADS, "count": 2}, scope=scope)
    made, seed = None, 0
    for fraction in [*sorted(fractions), 1.0]:
        before, seed = made, seed + 1
        made = plan(graph, spec, make_scores(graph, seed), fraction=fraction, base=before)
        if before is not None:
            assert all(set(u) <= set(made.removed.get(n, ())) for n, u in before.removed.items())
        after = made.sizes_after()
        assert all(after[g.name] % multiple in (0, 24 % multiple) for g in graph.select(role="mlp.channel"))
    if multiple == 1:
        once = plan(graph, spec, make_scores(graph))
        assert sum(counts(made).values()) == sum(counts(once).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused_with_group_and_unit(value):
    graph = make_graph()
    scores = make_scores(graph)
    scores["layers.2.mlp/mlp.channel"][7] = value
    with pytest.raises(NonFiniteError, match=r"'layers\.2\.mlp/mlp\.channel': 1 of 40 scores .* first at unit 7"):
        plan(graph, make_spec({**MLP, "ratio": 0.5}), scores)


def test_missing_and_misshapen_scores_are_refused():
    graph = make_graph()
    scores = make_scores(graph)
    with pytest.raises(PlanError, match=r"no scores for group 'layers\.0\.mlp/mlp\.channel'"):
        plan(graph, make_spec({**MLP, "ratio": 0.5}), {})
    scores["layers.0.mlp/mlp.channel"] = torch.ones(3)
    with pytest.raises(PlanError, match=r"has 40 units, expected scores of shape \(40,\), got \(3,\)"):
        plan(graph, make_spec({**MLP, "ratio": 0.5}), scores)


def test_a_group_selected_twice_is_refused():
    graph = make_graph()
    spec = make_spec({**MLP, "ratio": 0.5}, {**MLP, "layers": "1:", "ratio": 0.25})
    with pytest.raises(SpecError, match=r"layers\.1\.mlp/mlp\.channel"):
        plan(graph, spec, make_scores(graph))


def test_a_base_of_another_graph_is_refused():
    graph, other = make_graph(), make_graph(layers=2)
    spec = make_spec({**MLP, "ratio": 0.5})
    with pytest.raises(PlanError, match="graph fingerprint"):
        plan(graph, spec, make_scores(graph), base=plan(other, spec, make_scores(other)))


def test_scores_are_not_changed():
    graph = make_graph()
    scores = make_scores(graph)
    before = {name: value.clone() for name, value in scores.items()}
    plan(graph, make_spec({**MLP, "ratio": 0.5}), scores)
    assert all(torch.equal(scores[name], before[name]) for name in scores)


def test_limits_are_reached_exactly_and_step_by_step():
    graph = make_graph()
    spec, scores = make_spec({**MLP, "ratio": 0.5}, {**HEADS, "count": 1}), make_scores(graph)
    limits = Limits(keep={"layers.1.mlp/mlp.channel": 24}, notes=("said aloud",))
    base = None
    for fraction in (0.3, 0.6, 1.0):
        base = plan(graph, spec, scores, fraction=fraction, base=base, limits=limits)
    after = base.sizes_after()
    assert [after[f"layers.{i}.mlp/mlp.channel"] for i in range(3)] == [20, 24, 20]
    assert [after[f"layers.{i}.attn/attention.group"] for i in range(3)] == [7, 7, 7]
    assert base.notes == ("said aloud",)


@pytest.mark.parametrize("scope", ["role", "global"])
def test_limits_of_shared_pools_are_multiples(scope):
    graph = make_graph()
    spec, scores = (
        make_spec({"role": ["mlp.channel", "attention.group"], "ratio": 0.5}, scope=scope),
        make_scores(graph),
    )
    limits = Limits(multiples={g.name: 8 for g in graph if g.role == "mlp.channel"})
    made = plan(graph, spec, scores, limits=limits)
    assert all(kept % 8 == 0 for name, kept in made.sizes_after().items() if name.endswith("channel"))
    assert any(kept % 8 for name, kept in made.sizes_after().items() if name.endswith("group"))


def test_without_limits_the_export_still_asks_for_divisible_numbers():
    graph = make_graph()
    spec = make_spec({**MLP, "keep": 22}, {**HEADS, "keep": 5}, export={"tensor_parallel": 4})
    made = plan(graph, spec, make_scores(graph))
    assert set(made.sizes_after().values()) == {4, 24}
    assert "because of export.tensor_parallel: 4" in made.notes[0]
    with pytest.raises(SpecError, match=r"no smaller size of a group of 40 mlp\.channel units"):
        plan(graph, make_spec({**MLP, "ratio": 0.5}, export={"tensor_parallel": 64}), make_scores(graph))
