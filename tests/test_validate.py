"""Does a spec fit a graph: what is selected, what is refused and with which words."""

import pytest

from graphprune.errors import SpecError
from graphprune.graph import DependencyGraph, Group
from graphprune.schema import PruneSpec
from graphprune.validate import check, resolve_targets

FROZEN = "an integer buffer indexes it"


def group(role, layer, size, **extra):
    return Group(name=f"block.{layer}/{role}", role=role, layer=layer, size=size, members=(), **extra)


@pytest.fixture
def graph():
    groups = [g for n in range(4) for g in (group("attention.group", n, 4), group("mlp.channel", n, 40))]
    groups += [group("moe.expert", n, 8, frozen=FROZEN) for n in (1, 2)]
    groups += [group("moe.expert", 3, 8, minimum=2), group("vocab", None, 97, frozen="the loss reads it")]
    groups += [group("mixer.head", 0, 6, exact=False, inexact_reason="a norm runs over it")]
    return DependencyGraph(groups=tuple(groups), shapes={}, layers=4)


def spec(*targets, **parts):
    return PruneSpec.model_validate({"targets": list(targets), **parts})


def refusal(*targets, graph, call=check, **parts):
    with pytest.raises(SpecError) as caught:
        call(spec(*targets, **parts), graph, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    return caught.value


def test_targets_resolve_to_their_groups_in_graph_order(graph):
    first, second = resolve_targets(
        spec(
            {"role": "attention.*", "layers": "1:", "ratio": 0.5},
            {"name": "*/mlp.channel", "exclude_layers": -1, "exclude": "block.0/*", "keep": 20},
        ),
        graph,
    )
    assert [g.name for g in first.groups] == [f"block.{n}/attention.group" for n in (1, 2, 3)]
    assert [g.name for g in second.groups] == ["block.1/mlp.channel", "block.2/mlp.channel"]
    assert first.target.ratio == 0.5
    assert first.notes == second.notes == ()


def test_a_selection_of_nothing_says_what_there_is(graph):
    error = refusal({"role": "mlp.chanel", "layers": "2:", "ratio": 0.5}, graph=graph)
    (problem,) = error.problems
    assert problem == (
        "targets[0]: selects no group (role mlp.chanel, layers 2:). Did you mean 'mlp.channel'? "
        "The model has 4 layers and these roles: "
        "attention.group (layers 0-3); mixer.head (layer 0); mlp.channel (layers 0-3); "
        "moe.expert (layer 3); moe.expert frozen (layers 1-2); vocab frozen (outside the layers)."
    )


def test_a_layer_that_does_not_exist_is_named(graph):
    error = refusal({"role": "mlp.channel", "layers": 4, "ratio": 0.5}, graph=graph)
    assert error.problems == ("targets[0]: layer 4 does not exist: the model has 4 layers",)


def test_insisting_on_frozen_groups_prints_each_reason(graph):
    error = refusal({"role": ["vocab", "moe.expert"], "layers": [1, 2], "ratio": 0.5}, graph=graph)
    assert f"'block.1/moe.expert' and 1 more: {FROZEN}" in error.problems[0]
    assert "selects only groups that must not be pruned (2)" in error.problems[0]
    error = refusal({"role": "vocab", "ratio": 0.5}, {"role": "moe.expert", "layers": 1, "keep": 1}, graph=graph)
    assert len(error.problems) == 2
    assert "the loss reads it" in error.problems[0]
    assert FROZEN in error.problems[1]


def test_frozen_groups_among_others_are_skipped_with_a_note(graph):
    (only,) = resolve_targets(spec({"role": "moe.expert", "ratio": 0.5}), graph)
    assert [g.layer for g in only.groups] == [3]
    assert only.notes == (f"targets[0]: left alone, because frozen: 'block.1/moe.expert' and 1 more: {FROZEN}",)
    assert check(spec({"role": "moe.expert", "ratio": 0.5}), graph) == list(only.notes)


def test_removing_everything_is_refused(graph):
    error = refusal({"role": "attention.group", "count": 4}, graph=graph)
    (problem,) = error.problems
    assert problem == (
        "targets[0].count: group 'block.0/attention.group' and 3 more have 4 units; count 4 leaves 0, "
        "below the minimum 1. Remove less."
    )


def test_a_groups_own_minimum_counts(graph):
    error = refusal({"role": "moe.expert", "ratio": 0.9}, graph=graph)
    assert "has 8 units; ratio 0.9 leaves 1, below the minimum 2" in error.problems[0]
    assert check(spec({"role": "moe.expert", "layers": 3, "ratio": 0.75}), graph) == []


def test_pooled_units_are_judged_by_their_total(graph):
    wanted = {"role": ["mlp.channel", "attention.group"], "count": 5}
    assert "leaves 0" in refusal(wanted, graph=graph).problems[0]
    assert check(spec(wanted, scope="global"), graph) == []
    error = refusal({"role": "attention.group", "count": 4}, graph=graph, scope="global")
    assert "4 groups with 16 units together; count 4 leaves 0, below the minimum 4" in error.problems[0]


def test_two_targets_for_one_group_are_refused(graph):
    error = refusal({"role": "mlp.*", "ratio": 0.5}, {"name": "block.[23]/*", "ratio": 0.1}, graph=graph)
    assert len(error.problems) == 1
    assert "targets[0] and targets[1] both select 2 groups, 'block.2/mlp.channel' first" in error.problems[0]


def test_all_problems_come_at_once(graph):
    error = refusal({"role": "nope", "ratio": 0.5}, {"role": "vocab", "ratio": 0.5}, graph=graph)
    assert [p.split(":")[0] for p in error.problems] == ["targets[0]", "targets[1]"]
    error = refusal({"role": "mlp.channel", "count": 40}, {"role": "attention.group", "count": 4}, graph=graph)
    assert [p.split(":")[0] for p in error.problems] == ["targets[0].count", "targets[1].count"]


def test_what_does_no_harm_is_a_note(graph):
    assert check(spec({"role": "mixer.head", "ratio": 0.5}), graph) == [
        "targets[0]: in 1 group removal is not the same as masking: a norm runs over it"
    ]
    (note,) = check(spec({"role": "attention.group", "ratio": 0.1}), graph)
    assert "targets[0].ratio: removes nothing from groups of 4 units" in note
    assert check(spec({"role": "attention.group", "ratio": 0}), graph) == []


def test_a_ratio_of_pooled_units_is_that_of_the_pool(graph):
    wanted = {"role": "attention.group", "ratio": 0.2}  # of 4 units each nothing, of 16 together 3
    assert "removes nothing" in check(spec(wanted), graph)[0]
    assert check(spec(wanted, scope="role"), graph) == []
    assert check(spec(wanted, scope="global"), graph) == []


def test_a_quantised_base_has_no_gradients_to_judge_by(graph):
    targets = [{"role": "mlp.channel", "ratio": 0.5}]
    spec = PruneSpec.model_validate({"targets": targets, "criterion": "taylor", "quantization": "int8"})
    with pytest.raises(
        SpecError, match="criterion: 'taylor' needs gradients of weights, which a base in int8 does not"
    ):
        check(spec, graph)
