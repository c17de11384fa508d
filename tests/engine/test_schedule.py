import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.engine.schedule import Schedule

fractions = st.floats(0, 0.5, allow_nan=False)
schedules = st.builds(
    Schedule,
    kind=st.sampled_from(["cubic", "linear", "one_shot"]),
    warmup=fractions,
    cooldown=fractions,
    every=st.integers(1, 50),
    steps=st.integers(1, 400),
)


@given(schedules)
def test_fraction_grows_and_ends_at_exactly_one(schedule):
    values = [schedule.fraction(step) for step in range(schedule.steps + 1)]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert values[-1] == 1.0
    assert all(0.0 <= v <= 1.0 for v in values)


@given(schedules)
def test_events_lie_inside_the_run_and_the_last_one_reaches_the_target(schedule):
    events = schedule.events
    assert list(events) == sorted(set(events))
    assert 1 <= events[0] <= events[-1] <= schedule.steps
    assert schedule.fraction(events[-1]) == 1.0
    assert all(0.0 < schedule.fraction(e) < 1.0 for e in events[:-1])
    assert all(e % schedule.every == 0 for e in events[:-1])


@pytest.mark.parametrize("step", [21, 50, 100, 179])
def test_cubic_is_zhu_and_gupta(step):
    # f + (i - f)(1 - (t - t0)/(T(1 - w - c)))^3, written out for a target of 0.5
    schedule = Schedule("cubic", warmup=0.1, cooldown=0.1, every=10, steps=200)
    published = 0.5 + (0.0 - 0.5) * (1 - (step - 20) / (200 * (1 - 0.1 - 0.1))) ** 3
    assert 0.5 * schedule.fraction(step) == pytest.approx(published, abs=1e-12)


def test_linear_is_halfway_in_the_middle():
    schedule = Schedule("linear", warmup=0.1, cooldown=0.1, every=10, steps=100)
    assert schedule.fraction(50) == pytest.approx(0.5)


def test_events_of_the_usual_run():
    schedule = Schedule("cubic", warmup=0.1, cooldown=0.1, every=10, steps=100)
    assert schedule.events == (20, 30, 40, 50, 60, 70, 80, 90)


def test_one_shot_is_a_single_event_after_the_warm_up():
    assert Schedule("one_shot", warmup=0.2, cooldown=0.1, every=10, steps=50).events == (10,)
    assert Schedule("one_shot", warmup=0.0, cooldown=0.0, every=10, steps=50).events == (1,)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs_still_reach_the_target(steps):
    schedule = Schedule("cubic", warmup=0.1, cooldown=0.1, every=10, steps=steps)
    assert schedule.events == (steps,)
    assert schedule.fraction(steps) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "at least one step, got steps=0"),
        ({"every": 0}, "got steps=10, every=0"),
        ({"warmup": 0.7, "cooldown": 0.6}, "warmup=0.7, cooldown=0.6"),
        ({"warmup": -0.1}, "warmup=-0.1"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    usual = {"kind": "cubic", "warmup": 0.1, "cooldown": 0.1, "every": 1, "steps": 10}
    with pytest.raises(ValueError, match=message):
        Schedule(**{**usual, **arguments})
