"""Intervals and tests for a handful of seeds: Student's t, the bootstrap over seeds and segments, Holm's correction.

Everything is a pure function of arrays. Perplexities are looked at as logarithms: a perplexity is the exponential of a
mean, and a difference of logarithms is a ratio of perplexities, which means the same at 5 and at 500.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000


class Interval(NamedTuple):
    """From ``low`` to ``high``."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return value < self.low or value > self.high


# --- Student's t ----------------------------------------------------------------------------------------


def student_cdf(t: float, freedom: int) -> float:
    """P(T ≤ t) for Student's t with ``freedom`` degrees of freedom, by the finite series for whole numbers.

    With θ = atan(t/√ν), P(|T| ≤ t) is (2/π)(θ + sin θ cos θ (1 + 2/3 cos²θ + 2·4/(3·5) cos⁴θ + …)) for odd ν, with
    ν - 3 the highest power in the brackets, and sin θ (1 + 1/2 cos²θ + 1·3/(2·4) cos⁴θ + …) for even ν, with ν - 2 the
    highest: Abramowitz & Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4; Student, The probable
    error of a mean, Biometrika 6 (1908).

    Raises:
        ValueError: for less than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"expected at least one degree of freedom, got {freedom}")
    if math.isinf(t):
        return float(t > 0)
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = 1.0, 0.0
    for k in range(freedom // 2):
        total += term
        top = 2 * k + (2 if odd else 1)
        term *= top / (top + 1) * cosine**2
    within = 2 / math.pi * (angle + sine * cosine * total) if odd else sine * total
    return 0.5 + math.copysign(within, t) / 2


@lru_cache(maxsize=1024)
def student_quantile(probability: float, freedom: int) -> float:
    """The t below which ``probability`` (above 1/2) of the distribution lies, by bisection."""
    if not 0.5 < probability < 1:
        raise ValueError(f"expected a probability between 0.5 and 1, got {probability}")
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """x̄ ± t(ν = n - 1)·s/√n: the interval that holds for few values, if they scatter roughly normally.

    Args:
        values: shape (n,), n at least 2.
        level: how often such intervals contain the mean.

    Raises:
        ValueError: for less than two values: one value says nothing about its spread.
    """
    x = _values(values)
    half = student_quantile(0.5 + level / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(float(x.mean()) - half, float(x.mean()) + half)


def student_p(values: ArrayLike) -> float:
    """The two-sided p-value of a mean of zero; 1 where all values are zero, 0 where all are the same other number."""
    x = _values(values)
    mean, spread = float(x.mean()), float(x.std(ddof=1))
    if spread == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return 2 * (1 - student_cdf(abs(mean) / (spread / math.sqrt(len(x))), len(x) - 1))


# --- the bootstrap --------------------------------------------------------------------------------------


def bootstrap_interval(
    values: ArrayLike, level: float = LEVEL, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The percentile interval of the mean when both seeds and segments could have been others.

    Rows and columns are drawn with replacement, independently of each other, as often as there are; the interval is
    between the quantiles of the means: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. For
    few rows it is too narrow, by about √((n-1)/n) for the spread alone and more for the tails, and it can never leave
    the range of the values: Hesterberg, What Teachers Should Know about the Bootstrap, https://arxiv.org/abs/1411.5279,
    section 3.2. So it stands beside :func:`student_interval`, never alone.

    Args:
        values: shape (seeds,), or (seeds, segments) where a value per segment is known; segments are the same text in
            every row, so they are drawn once for all rows.
        level: of the interval.
        resamples: how many times is drawn.
        seed: of the draws; the same one draws the same rows and columns, whatever the values.

    Raises:
        ValueError: for less than two rows.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim not in (1, 2) or len(x) < 2:
        raise ValueError(f"expected shape (seeds,) or (seeds, segments) with at least 2 seeds, got {x.shape}")
    rows, columns = _weights(len(x), 1 if x.ndim == 1 else x.shape[1], resamples, seed)
    means = rows @ x if x.ndim == 1 else np.einsum("rc,rc->r", rows @ x, columns)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


@lru_cache(maxsize=4)
def _weights(rows: int, columns: int, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """How often each row and each column was drawn, as shares: shapes (resamples, rows) and (resamples, columns)."""
    generator = np.random.default_rng(seed)

    def drawn(count: int) -> Floats:
        if count == 1:
            return np.ones((resamples, 1))
        picks = generator.integers(count, size=(resamples, count)) + np.arange(resamples)[:, None] * count
        return np.bincount(picks.ravel(), minlength=resamples * count).reshape(resamples, count) / count

    return drawn(rows), drawn(columns)


# --- several comparisons at once ------------------------------------------------------------------------


def holm(p: ArrayLike) -> Floats:
    """p-values corrected for their number, in the order given.

    Sorted, the i-th smallest of m is multiplied by m - i + 1, and none may be below the one before it; calling those
    below α significant is wrong anywhere with a probability of at most α, whatever depends on what: Holm, A simple
    sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    raw = np.asarray(p, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    factors = len(raw) - np.arange(len(raw))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * factors), 1.0)
    return adjusted


def _values(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"expected at least two values in one dimension, got shape {x.shape}")
    return x


def mean(values: Sequence[float]) -> float:
    """The mean of the numbers that are finite; NaN without any."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
