"""Two prunings as one."""

import pytest

from graphprune.errors import PlanError
from graphprune.plan import PrunePlan
from graphprune.reshape.history import compose, history_of, remember
from tests.decoders import tiny


def plan(sizes, **removed):
    return PrunePlan(fingerprint="x", sizes=sizes, removed={n: tuple(u) for n, u in removed.items()})


def test_units_of_the_second_plan_are_renumbered():
    first = plan({"a": 6, "b": 4}, a=[0, 3])  # 1 2 4 5 stay
    second = plan({"a": 4, "b": 4}, a=[1, 3], b=[2])
    both = compose(first, second)
    assert both.removed == {"a": (0, 2, 3, 5), "b": (2,)}
    assert both.sizes == {"a": 6, "b": 4}
    assert both.sizes_after() == second.sizes_after()


def test_a_group_of_one_unit_may_vanish_from_the_second_graph():
    first = plan({"a": 2, "b": 4}, a=[0])
    assert compose(first, plan({"b": 4}, b=[1])).removed == {"a": (0,), "b": (1,)}


def test_plans_of_different_groups_are_not_composed():
    with pytest.raises(PlanError, match="does not start where the first ends"):
        compose(plan({"a": 6}, a=[0]), plan({"a": 6}))


def test_an_unpruned_model_has_a_history_without_steps():
    model = tiny("llama")
    history = history_of(model)
    assert history.steps == ()
    assert history.stock
    assert history.architecture == type(model).__name__
    assert history.base_config["intermediate_size"] == 40
    remember(model, history)
    assert history_of(model) is history
    assert "_graphprune_history" not in dict(model.named_modules())
