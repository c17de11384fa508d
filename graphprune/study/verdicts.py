"""What may be said of settings that ran with several seeds: better, worse, a tie, or nothing at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from graphprune.study.statistics import (
    LEVEL,
    Floats,
    Interval,
    bootstrap_interval,
    holm,
    student_interval,
    student_p,
)

Verdict = Literal["better", "worse", "tie", "none"]
_SAME = 1e-9
"""Differences of logarithms below this are rounding."""


@dataclass(frozen=True)
class Runs:
    """What one setting reached with every seed.

    Attributes:
        values: by seed; perplexities, or accuracies. Failed runs are not there, or not finite.
        segments: by seed, of perplexities: the mean loss of every segment of the evaluation text.
        ratio: whether values are compared by their ratio (perplexities) rather than their difference (accuracies).
        lower: whether lower values are better.
    """

    values: Mapping[int, float]
    segments: Mapping[int, Sequence[float]] | None = None
    ratio: bool = True
    lower: bool = True

    @property
    def finite(self) -> dict[int, float]:
        """The values that are numbers, by seed."""
        return {seed: value for seed, value in self.values.items() if math.isfinite(value)}

    def scaled(self, seeds: Sequence[int]) -> Floats:
        """Values on the scale on which they are added up: logarithms of what is compared by ratios."""
        values = np.array([self.values[seed] for seed in seeds], dtype=np.float64)
        return np.log(values) if self.ratio else values

    def back(self, value: float) -> float:
        """From that scale to the value's own."""
        return math.exp(value) if self.ratio else value


@dataclass(frozen=True)
class Estimate:
    """Of one setting: the mean over seeds (geometric for perplexities), Student's interval, smallest and largest.

    ``interval`` is None with one seed.
    """

    mean: float
    interval: Interval | None
    smallest: float
    largest: float
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """One setting against another, paired by seed.

    Attributes:
        effect: the geometric mean of the ratios of perplexities (1: no difference), or the mean difference (0).
        student: Student's interval of it; None without at least two pairs.
        bootstrap: the percentile interval of it, over seeds and, where known, segments; None as above.
        p: two-sided, of Student's paired test; NaN as above.
        p_holm: the same, corrected for the number of comparisons made together.
        seeds: pairs.
        verdict: on the first setting.
        why: where there is no verdict, the reason.
    """

    effect: float
    student: Interval | None
    bootstrap: Interval | None
    p: float
    p_holm: float
    seeds: int
    verdict: Verdict
    why: str = ""


def estimate(runs: Runs, level: float = LEVEL) -> Estimate | None:
    """The mean of a setting with its interval; None where no run gave a number."""
    found = runs.finite
    if not found:
        return None
    scaled = runs.scaled(list(found))
    interval = None
    if len(found) > 1:
        interval = Interval(*(runs.back(end) for end in student_interval(scaled, level)))
    return Estimate(runs.back(float(scaled.mean())), interval, min(found.values()), max(found.values()), len(found))


def compare(first: Runs, second: Runs, level: float = LEVEL) -> Comparison:
    """``first`` against ``second``, over the seeds that gave a number for both.

    "Better" and "worse" need all three: Student's interval of the paired differences without the point of no
    difference, the bootstrap interval without it, and a small p-value, which :func:`against` corrects for the number of
    comparisons. Everything else is a tie, and one seed says nothing.
    """
    seeds = [seed for seed in first.finite if seed in second.finite]
    if not seeds:
        return Comparison(math.nan, None, None, math.nan, math.nan, 0, "none", "no seed gave a number for both")
    difference = first.scaled(seeds) - second.scaled(seeds)
    difference[np.abs(difference) < _SAME] = 0.0
    effect = first.back(float(difference.mean()))
    if len(seeds) == 1:
        return Comparison(effect, None, None, math.nan, math.nan, 1, "none", "one seed")
    if np.ptp(difference) < _SAME:
        difference[:] = difference[0]
        if difference[0]:
            # Two results that the seed does not change are one measurement, however often it is repeated.
            why = "the seed changes nothing: one measurement, repeated"
            return Comparison(effect, None, None, math.nan, math.nan, len(seeds), "none", why)
    student = student_interval(difference, level)
    bootstrap = bootstrap_interval(_per_segment(first, second, seeds, difference), level)
    p = student_p(difference)
    found = Comparison(
        effect,
        Interval(*map(first.back, student)),
        Interval(*map(first.back, bootstrap)),
        p,
        p,
        len(seeds),
        "tie",
    )
    return replace(found, verdict=_verdict(found, first, level))


def against(reference: str, settings: Mapping[str, Runs], level: float = LEVEL) -> dict[str, Comparison]:
    """Every other setting against ``reference``, with Holm's correction over these comparisons."""
    found = {name: compare(runs, settings[reference], level) for name, runs in settings.items() if name != reference}
    tested = [name for name, comparison in found.items() if not math.isnan(comparison.p)]
    for name, p in zip(tested, holm([found[name].p for name in tested]), strict=True):
        corrected = replace(found[name], p_holm=float(p))
        found[name] = replace(corrected, verdict=_verdict(corrected, settings[name], level))
    return found


@dataclass(frozen=True)
class Standing:
    """Settings that answer the same question, ranked.

    Attributes:
        best: with the best mean among those with the most seeds; None where nothing gave a number.
        estimates: of every setting that gave a number, best first.
        comparisons: every other setting against the best.
        group: the best, and what ties with it by the rules of :func:`compare`, best first. What could not be compared
            is neither in it nor worse.
    """

    best: str | None
    estimates: dict[str, Estimate]
    comparisons: dict[str, Comparison]
    group: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """Whether everything else is worse than the best."""
        return bool(self.comparisons) and all(c.verdict == "worse" for c in self.comparisons.values())

    @property
    def decided(self) -> bool:
        """Whether anything could be compared at all."""
        return any(c.verdict != "none" for c in self.comparisons.values())


def standing(settings: Mapping[str, Runs], level: float = LEVEL) -> Standing:
    """Ranks settings, and says which cannot be told from the best.

    The best is picked by the same numbers that it is then compared by, which flatters it: a tie with it is surely a
    tie, a small lead over others is to be taken with care.
    """
    estimates = {name: found for name, runs in settings.items() if (found := estimate(runs, level)) is not None}
    if not estimates:
        return Standing(None, {}, {}, ())
    sign = 1.0 if next(iter(settings.values())).lower else -1.0
    order = sorted(estimates, key=lambda name: sign * estimates[name].mean)
    most = max(found.seeds for found in estimates.values())
    best = next(name for name in order if estimates[name].seeds == most)
    comparisons = against(best, {name: settings[name] for name in estimates}, level)
    ties = (name for name in order if name != best and comparisons[name].verdict in ("tie", "better"))
    return Standing(best, {name: estimates[name] for name in order}, comparisons, (best, *ties))


def _per_segment(first: Runs, second: Runs, seeds: Sequence[int], difference: Floats) -> Floats:
    """Differences of shape (seeds, segments) where both settings know their segments, else (seeds,) as given."""
    if first.segments is None or second.segments is None:
        return difference
    if any(seed not in first.segments or seed not in second.segments for seed in seeds):
        return difference
    a, b = first.segments, second.segments
    lengths = {len(kept[seed]) for kept in (a, b) for seed in seeds}
    if len(lengths) != 1 or 0 in lengths:
        return difference
    per_segment = np.array([np.subtract(a[seed], b[seed]) for seed in seeds], dtype=np.float64)
    return per_segment if np.isfinite(per_segment).all() else difference


def _verdict(found: Comparison, runs: Runs, level: float) -> Verdict:
    same = 1.0 if runs.ratio else 0.0
    if found.student is None or found.bootstrap is None:
        return "none"
    if not (found.student.excludes(same) and found.bootstrap.excludes(same) and found.p_holm <= 1 - level + 1e-12):
        return "tie"
    return "better" if (found.effect < same) == runs.lower else "worse"
