"""Plans: made by hand, checked, saved and read back."""

from __future__ import annotations

import pytest

from graphprune.errors import PlanError
from graphprune.graph import DependencyGraph, Group
from graphprune.plan import PrunePlan

GRAPH = DependencyGraph(
    groups=(
        Group(name="a/heads", role="attention.group", layer=0, size=4, members=()),
        Group(name="a/experts", role="moe.expert", layer=0, size=4, members=(), minimum=2),
        Group(name="hidden", role="hidden", layer=None, size=8, members=(), frozen="it runs everywhere"),
    ),
    shapes={},
    layers=1,
)


def test_units_are_sorted_and_distinct():
    plan = PrunePlan.remove(GRAPH, {"a/heads": [2, 0, 2]})
    assert plan.removed == {"a/heads": (0, 2)}
    assert plan.kept("a/heads") == (1, 3) and plan.kept("a/experts") == (0, 1, 2, 3)
    assert plan.ratio("a/heads") == 0.5 and plan.sizes_after()["a/heads"] == 2


def test_every_problem_is_reported_at_once():
    with pytest.raises(PlanError) as error:
        PrunePlan.remove(GRAPH, {"a/heads": [4], "a/experts": [0, 1, 2], "hidden": [0], "nobody": [1]})
    text = str(error.value)
    assert "group 'a/heads' has units 0..3, got (4,)" in text
    assert "removing 3 leaves 1, below its minimum 2" in text
    assert "group 'hidden' must not be pruned: it runs everywhere" in text
    assert "unknown group 'nobody'" in text


def test_the_summary_adds_up_by_role():
    plan = PrunePlan(
        fingerprint="x", sizes={"a/mlp.channel": 4, "a/mlp.channel.1": 6}, removed={"a/mlp.channel.1": (1, 2)}
    )
    assert plan.summary() == {
        "mlp.channel": {
            "groups": 1,
            "removed": 2,
            "of": 6,
            "ratio": 2 / 6,
            "all_groups": 2,
            "all_of": 10,
            "all_ratio": 0.2,
        }
    }


def test_the_summary_is_of_what_could_go_and_of_all_there_is():
    """Two layers of four are targets; one of these loses nothing, where layers compete."""
    sizes = {f"{i}/mlp.channel": 10 for i in range(4)} | {"0/heads": 4}
    plan = PrunePlan(
        fingerprint="x",
        sizes=sizes,
        removed={"1/mlp.channel": tuple(range(8))},
        targets=("1/mlp.channel", "2/mlp.channel"),
    )
    row = plan.summary()["mlp.channel"]
    assert (row["groups"], row["of"], row["ratio"]) == (2, 20, 0.4)
    assert (row["all_groups"], row["all_of"], row["all_ratio"]) == (4, 40, 0.2)
    assert list(plan.summary()) == ["mlp.channel"]
    with pytest.raises(ValueError, match="targets names the group '9/x', which 'sizes' does not list"):
        PrunePlan(fingerprint="x", sizes=sizes, removed={}, targets=("9/x",))


def test_plans_survive_a_file(tmp_path):
    plan = PrunePlan.remove(GRAPH, {"a/heads": [1], "a/experts": [0, 3]})
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_that_is_no_plan(tmp_path):
    (tmp_path / "plan.json").write_text('{"format": 1, "removed": {}}')
    with pytest.raises(PlanError, match=r"plan.json is not a prune plan"):
        PrunePlan.load(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="no plan file at"):
        PrunePlan.load(tmp_path / "missing.json")
    with pytest.raises(PlanError, match=r"is not a prune plan: .*directory"):
        PrunePlan.load(tmp_path)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"b": (0,)}, "which 'sizes' does not list"),
        ({"a": (1, 0)}, "sorted and distinct"),
        ({"a": (4,)}, r"units 0\.\.3"),
    ],
)
def test_an_edited_file_that_contradicts_itself(tmp_path, removed, message):
    with pytest.raises(ValueError, match=message):
        PrunePlan(fingerprint="x", sizes={"a": 4}, removed=removed)


def test_a_plan_for_another_model_is_refused():
    plan = PrunePlan.remove(GRAPH, {"a/heads": [1]})
    with pytest.raises(PlanError, match="made for a model with graph fingerprint"):
        plan.check(GRAPH.model_copy(update={"layers": 7}))
    plan.check(GRAPH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"removed": {"hidden": (0,)}}, "group 'hidden' must not be pruned: it runs everywhere"),
        ({"removed": {"a/experts": (0, 1, 2)}}, "below its minimum 2"),
        ({"sizes": {"a/heads": 9}}, "the plan's sizes are not those of the graph"),
    ],
)
def test_a_plan_edited_by_hand_cannot_remove_what_must_stay(changes, message):
    plan = PrunePlan.remove(GRAPH, {"a/heads": [1]})
    edited = plan.model_copy(update={k: {**getattr(plan, k), **v} for k, v in changes.items()})
    with pytest.raises(PlanError, match=message):
        edited.check(GRAPH)
