"""The state machine, fed by a criterion whose scores the test chooses."""

import itertools

import pytest
import torch

from graphprune.engine.pruner import Pruner
from graphprune.errors import GraphPruneError, NonFiniteError
from graphprune.graph import DependencyGraph, Group
from graphprune.schema import PruneSpec


def make_pruner(steps, scores, average=0.0, **schedule):
    groups = tuple(
        Group(name=f"layers.{i}/mlp.channel", role="mlp.channel", layer=i, size=8, members=()) for i in (0, 1)
    )
    graph = DependencyGraph(groups=groups, shapes={}, layers=2)
    spec = PruneSpec.model_validate(
        {
            "targets": [{"role": "mlp.channel", "ratio": 0.5}],
            "criterion": {"name": "magnitude", "average": average},
            "schedule": {"every": 1, "warmup": 0.0, "cooldown": 0.0, **schedule},
        }
    )
    pruner = Pruner(graph, spec, steps)
    pruner.criterion = type("Given", (), {"name": "given", "score": lambda self, group, seen: scores(group, seen)})()
    return pruner


def run(pruner, steps):
    """Every step's plan, the step number standing in for what the batches show."""
    plans = []
    for step in range(1, steps + 1):
        if not pruner.done:
            pruner.score(step, step)
            pruner.advance(step)
        plans.append(pruner.plan)
    return plans


def test_masks_only_grow_and_reach_the_target_exactly():
    noise = torch.Generator().manual_seed(0)
    pruner = make_pruner(6, lambda group, seen: torch.rand(8, generator=noise))
    plans = run(pruner, 6)
    for before, after in itertools.pairwise(plans):
        assert all(set(units) <= set(after.removed[name]) for name, units in before.removed.items())
    assert [len(u) for u in plans[-1].removed.values()] == [4, 4]
    assert pruner.done


def test_plans_follow_the_average_of_equation_11():
    history = torch.rand(3, 8, dtype=torch.float64)
    pruner = make_pruner(3, lambda group, seen: history[seen - 1], average=0.9, kind="one_shot", warmup=0.99)
    assert pruner.schedule.events == (2,)
    plans = run(pruner, 3)
    average = 0.9 * 0.1 * history[0] + 0.1 * history[1]
    expected = tuple(sorted(average.argsort()[:4].tolist()))
    assert set(plans[-1].removed.values()) == {expected}


def test_events_tell_step_fraction_units_and_loss():
    pruner = make_pruner(2, lambda group, seen: torch.arange(8.0), kind="linear")
    pruner.score(1, None)
    assert pruner.advance(1, loss=3.25) is not None
    assert str(pruner.events[0]) == "step 1: 50.0% of the target, removed 4 mlp.channel, loss 3.2500"
    pruner.score(2, None)
    pruner.advance(2)
    assert str(pruner.events[1]) == "step 2: 100.0% of the target, removed 8 mlp.channel"


def test_no_event_no_plan():
    pruner = make_pruner(10, lambda group, seen: torch.arange(8.0), every=5)
    pruner.score(1, None)
    assert pruner.advance(1) is None
    assert pruner.plan.removed == {}


def test_an_event_without_scores_is_caught_up_with():
    pruner = make_pruner(4, lambda group, seen: torch.arange(8.0), kind="linear")
    assert pruner.advance(1) is None  # a half-precision overflow: nothing was scored
    pruner.score(2, None)
    assert pruner.advance(2) is not None
    assert pruner.events[-1].fraction == 0.5


def test_a_run_that_stops_early_still_ends_at_the_target():
    pruner = make_pruner(100, lambda group, seen: torch.arange(8.0), every=50)
    pruner.score(1, None)
    assert [len(u) for u in pruner.finish(1).removed.values()] == [4, 4]
    assert pruner.done
    assert pruner.finish(1) is pruner.plan


def test_a_run_without_a_score_cannot_end():
    with pytest.raises(GraphPruneError, match="ended after 0 optimizer steps and none could be scored"):
        make_pruner(10, lambda group, seen: torch.ones(8)).finish(0)


def test_scores_that_are_not_finite_name_group_and_step():
    pruner = make_pruner(10, lambda group, seen: torch.full((8,), float("nan")))
    with pytest.raises(NonFiniteError, match=r"group 'layers\.0/mlp\.channel': 8 of 8 .* at step 4"):
        pruner.score(4, None)
    assert pruner.average.count == 0


def test_processes_agree_on_the_mean_of_their_scores(monkeypatch):
    """What another process saw is added where all_reduce would bring it; both then plan alike."""
    elsewhere = torch.tensor([0.0, 9, 9, 9, 0, 0, 0, 9] * 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(elsewhere))
    pruner = make_pruner(1, lambda group, seen: torch.arange(8.0))
    pruner.score(1, None)
    assert pruner.average.values["layers.1/mlp.channel"].tolist() == [0, 5, 5.5, 6, 2, 2.5, 3, 8]
