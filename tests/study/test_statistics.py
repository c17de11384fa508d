"""Intervals and tests against tables, against direct computations, and against what they promise."""

import itertools
import math

import numpy as np
import pytest

from graphprune.study.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    student_cdf,
    student_interval,
    student_p,
    student_quantile,
)

# --- Student's t ----------------------------------------------------------------------------------------

# Two-sided 95 % and 99 % points as printed in tables of the distribution.
TABLE = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 9: (2.262, 3.250)}
TABLE |= {10: (2.228, 3.169), 29: (2.045, 2.756), 30: (2.042, 2.750), 120: (1.980, 2.617)}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom: int):
    for probability, expected in zip((0.975, 0.995), TABLE[freedom], strict=True):
        assert student_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 12, 25])
@pytest.mark.parametrize("t", [-3.0, -0.4, 0.0, 0.7, 5.0])
def test_the_series_is_the_integral_of_the_density(freedom: int, t: float):
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    x = np.linspace(0.0, t, 20_001)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert student_cdf(t, freedom) == pytest.approx(0.5 + np.trapezoid(density, x), abs=1e-9)


def test_scipy_agrees():
    stats = pytest.importorskip("scipy.stats")
    for freedom, t in itertools.product((1, 2, 5, 29), (-2.0, 0.3, 4.0)):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


def test_the_interval_by_hand():
    # Values 1, 2, 3: mean 2, s = 1, so 2 ± 4.3027 / √3.
    low, high = student_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert student_interval([1.0, 2.0, 3.0], level=0.99).low < low


def test_p_fits_the_interval():
    values = np.array([0.3, 0.5, 0.1, 0.4])
    for level in (0.8, 0.95, 0.99):
        assert (student_p(values) < 1 - level) == student_interval(values, level).excludes(0.0)
    assert student_p([0.0, 0.0]) == 1.0 and student_p([0.2, 0.2]) == 0.0


def test_one_value_has_no_interval():
    for call in (student_interval, student_p, bootstrap_interval):
        with pytest.raises(ValueError, match=r"at least (two|2)"):
            call([1.0])
    with pytest.raises(ValueError, match="at least one degree of freedom"):
        student_cdf(1.0, 0)
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        student_quantile(0.3, 2)


def test_an_interval_excludes_what_is_outside():
    assert Interval(0.1, 0.3).excludes(0.0) and Interval(0.1, 0.3).excludes(0.4)
    assert not Interval(0.1, 0.3).excludes(0.1)


# --- the bootstrap --------------------------------------------------------------------------------------


def test_the_bootstrap_of_three_seeds_is_that_of_all_27_samples():
    values = [1.0, 2.0, 6.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    low, high = bootstrap_interval(values, level=0.8, resamples=40_000)
    # All of 27 equally likely means: the 10 % point lies at the third of them, the 90 % point at the 25th.
    assert low == pytest.approx(means[2], abs=0.01) and high == pytest.approx(means[24], abs=0.01)


def test_the_bootstrap_draws_seeds_and_segments_against_a_loop():
    values = np.random.default_rng(3).standard_normal((4, 9)) + 0.5
    draw = np.random.default_rng(7)
    means = []
    for _ in range(8_000):
        rows, columns = draw.integers(4, size=4), draw.integers(9, size=9)
        means.append(values[np.ix_(rows, columns)].mean())
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.03)


def test_the_bootstrap_is_the_same_every_time_and_follows_its_seed():
    values = np.random.default_rng(0).standard_normal((3, 20))
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_the_bootstrap_stays_within_the_values():
    values = [0.1, 0.2, 0.4]
    low, high = bootstrap_interval(values, level=0.999)
    assert min(values) <= low <= high <= max(values)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"got \(2, 2, 2\)"):
        bootstrap_interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="one dimension"):
        student_interval(np.zeros((2, 2)))


def test_coverage_with_three_seeds():
    """Why both intervals are asked: of normal values Student's holds what it promises, the bootstrap does not."""
    draw = np.random.default_rng(0)
    samples = draw.standard_normal((1_500, 3))
    student = np.mean([not student_interval(s).excludes(0.0) for s in samples])
    bootstrap = np.mean([not bootstrap_interval(s, resamples=400).excludes(0.0) for s in samples])
    assert student == pytest.approx(0.95, abs=0.02)
    assert 0.65 < bootstrap < 0.85  # Hesterberg: far too narrow for so few


# --- several comparisons --------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04; none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert len(holm([])) == 0


def test_holm_keeps_the_promise_over_a_family():
    draw = np.random.default_rng(1)
    wrong = 0
    for _ in range(600):
        differences = draw.standard_normal((6, 4))  # six comparisons without any difference
        wrong += (holm([student_p(row) for row in differences]) < 0.05).any()
    assert wrong / 600 < 0.075
