"""Numbers and findings in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphprune.study.metrics import Metric
from graphprune.study.statistics import Interval


def told(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def count(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def join(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def range_words(metric: Metric, known: Sequence[tuple[str, float]], across: str) -> str:
    """A line in words: where it starts and where it ends."""
    (first, start), (last, end) = known[0], known[-1]
    if len(known) == 1:
        return f"{metric.show(start)} at {across} {first}"
    return f"{metric.show(start)} at {across} {first}, {metric.show(end)} at {last}"


def interval_words(metric: Metric, interval: Interval | None) -> str:
    """``2.86 to 3.21``; a dash where there is none."""
    return "–" if interval is None else f"{metric.show(interval.low)} to {metric.show(interval.high)}"


def change(factor: float) -> str:
    """A ratio as a percentage: ``+4.2 %``, ``-12 %``, ``×3.1`` from doubling on."""
    if not math.isfinite(factor):
        return "–"
    if factor >= 2:
        return f"×{factor:.3g}"
    percent = 100 * (factor - 1)
    return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"


def effect_words(metric: Metric, effect: float) -> str:
    """A difference between settings: of perplexities in per cent, of accuracies in points."""
    return change(effect) if metric.ratio else f"{100 * effect:+.1f} points"


def seconds(value: float) -> str:
    """``0.35 s``, ``12.3 s``, ``4 min``, ``2.1 h``; ``7.2 ms`` below a tenth of a second."""
    if not math.isfinite(value):
        return "–"
    if value < 0.1:
        return f"{1000 * value:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def amount(value: float) -> str:
    """``2.6 M``, ``1.4 G``."""
    if not math.isfinite(value):
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Bytes: ``16.8 GB``, in powers of ten."""
    return "–" if not math.isfinite(value) else f"{amount(value)}B" if value >= 1000 else f"{value:.3g} B"
