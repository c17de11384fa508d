"""What may be said of settings: only what seeds, intervals and corrections bear out."""

import math

import numpy as np
import pytest

from graphprune.study.verdicts import Runs, against, compare, estimate, standing


def runs(*values: float, **options) -> Runs:
    return Runs(dict(enumerate(values)), **options)


def test_a_clear_difference_is_told_and_has_its_size():
    better, worse = runs(5.0, 5.2, 5.1), runs(6.0, 6.3, 6.1)
    found = compare(better, worse)
    assert found.verdict == "better" and compare(worse, better).verdict == "worse"
    expected = math.exp(np.mean(np.log([5.0 / 6.0, 5.2 / 6.3, 5.1 / 6.1])))
    assert found.effect == pytest.approx(expected)
    assert found.student is not None and found.student.low < expected < found.student.high < 1
    assert compare(worse, better).effect == pytest.approx(1 / expected)


def test_pairs_count_not_means():
    """Seeds that move both settings alike do not hide what is between them."""
    a, b = runs(5.0, 7.0, 9.0), runs(5.2, 7.3, 9.35)
    assert compare(a, b).verdict == "better"
    shuffled = Runs({0: 7.3, 1: 9.35, 2: 5.2})
    assert compare(a, shuffled).verdict == "tie"


def test_a_small_difference_is_a_tie():
    assert compare(runs(5.0, 5.3, 4.8), runs(5.1, 5.1, 5.0)).verdict == "tie"


def test_both_intervals_are_asked():
    """Three differences of one sign: the bootstrap is sure at once, Student's interval is not."""
    found = compare(runs(5.0, 5.0, 5.0), runs(5.01, 5.1, 5.6))
    assert found.bootstrap is not None and found.bootstrap.excludes(1.0)
    assert found.student is not None and not found.student.excludes(1.0)
    assert found.verdict == "tie"


def test_segments_can_take_a_verdict_away():
    """All seeds agree, but only because of one odd segment of the text."""
    seeds, segments = 3, 8
    losses = {s: np.full(segments, 1.6 + 0.01 * s) for s in range(seeds)}
    others = {s: losses[s] + 0.001 * s * np.eye(segments)[0] for s in range(seeds)}
    for s in range(seeds):
        others[s][0] += 0.8
    values = [math.exp(losses[s].mean()) for s in range(seeds)]
    higher = [math.exp(others[s].mean()) for s in range(seeds)]
    assert compare(runs(*values), runs(*higher)).verdict == "better"
    with_text = compare(runs(*values, segments=losses), runs(*higher, segments=others))
    assert with_text.verdict == "tie" and with_text.effect == pytest.approx(
        compare(runs(*values), runs(*higher)).effect
    )


def test_one_seed_says_nothing():
    found = compare(runs(5.0), runs(50.0))
    assert found.verdict == "none" and found.why == "one seed" and found.student is None and math.isnan(found.p)


def test_failed_runs_are_left_out_pair_by_pair():
    a, b = Runs({0: 5.0, 1: math.nan, 2: 5.1}), Runs({0: 6.0, 1: 6.1, 2: math.inf})
    found = compare(a, b)
    assert found.seeds == 1 and found.verdict == "none"
    assert "no seed" in compare(Runs({0: 5.0}), Runs({1: 5.0})).why


def test_a_seed_that_changes_nothing_is_one_measurement():
    found = compare(runs(5.0, 5.0, 5.0), runs(6.0, 6.0, 6.0))
    assert found.verdict == "none" and "changes nothing" in found.why
    assert compare(runs(5.0, 5.0), runs(5.0, 5.0)).verdict == "tie"
    assert compare(runs(5.0, 5.1, 5.2), runs(5.0, 5.1, 5.2)).verdict == "tie"


def test_accuracies_are_compared_by_difference_and_higher_is_better():
    options = {"ratio": False, "lower": False}
    found = compare(runs(0.61, 0.60, 0.62, **options), runs(0.50, 0.50, 0.51, **options))
    assert found.verdict == "better" and found.effect == pytest.approx(0.32 / 3)


def test_more_comparisons_need_more():
    a, b = runs(5.0, 5.2, 5.1), runs(5.35, 5.4, 5.38)
    assert compare(a, b).verdict == "better"
    others = {f"n{k}": runs(*(np.array([5.0, 5.2, 5.1]) * f)) for k, f in enumerate([1.001, 0.999] * 8)}
    others = {k: Runs({s: v * (1 + 0.002 * (s - 1)) for s, v in r.values.items()}) for k, r in others.items()}
    family = against("b", {"b": b, "a": a, **others})
    assert family["a"].p == compare(a, b).p and family["a"].p_holm == pytest.approx(17 * family["a"].p)
    assert family["a"].verdict == "tie"


def test_estimates_are_geometric_for_perplexities():
    found = estimate(runs(4.0, 9.0))
    assert found is not None and found.mean == pytest.approx(6.0) and (found.smallest, found.largest) == (4.0, 9.0)
    assert estimate(runs(0.4, 0.6, ratio=False)).mean == pytest.approx(0.5)
    assert estimate(runs(4.0)).interval is None and estimate(runs(math.nan)) is None


def test_a_standing_names_the_best_and_its_ties():
    settings = {
        "far": runs(9.0, 9.4, 9.1),
        "close": runs(5.05, 5.15, 5.25),
        "best": runs(5.0, 5.2, 5.1),
        "once": Runs({0: 4.0}),
        "failed": Runs({0: math.nan}),
    }
    found = standing(settings)
    assert found.best == "best"  # not the one with a single seed, though its number is lower
    assert list(found.estimates) == ["once", "best", "close", "far"]
    assert found.group == ("best", "close") and not found.alone  # nothing is known of the one with a single seed
    assert found.comparisons["far"].verdict == "worse" and found.comparisons["once"].verdict == "none"
    assert found.decided
    assert standing({"a": runs(1.0), "b": runs(2.0)}).decided is False
    assert standing({"a": runs(math.nan)}).best is None


def test_higher_accuracy_stands_first():
    options = {"ratio": False, "lower": False}
    found = standing({"low": runs(0.4, 0.41, **options), "high": runs(0.6, 0.61, **options)})
    assert list(found.estimates) == ["high", "low"]
