"""Limits and ticks: plain numbers, round ones, no more than there is room for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from graphprune.study.report.figures import WIDE, width_of


def value_axis(
    axis: Any,
    low: float,
    high: float,
    *,
    log: bool,
    most: int = 6,
    show: Callable[[float], str] | None = None,
    room: float | None = None,
) -> None:
    """Limits and ticks of an x or y axis.

    Args:
        axis: ``panel.xaxis`` or ``panel.yaxis``.
        low: smallest value to show.
        high: largest value to show.
        log: whether values are compared by ratios.
        most: ticks, at most.
        show: how a value is written; by default as a plain number.
        room: inches along the axis that labels must share, where they stand beside each other.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    write = show or plain
    if log:
        low, high = low / 1.05, high * 1.05
        (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
        axis.set_minor_locator(NullLocator())
    else:
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)
    place = (lambda v: math.log(v / low) / math.log(high / low)) if log else (lambda v: (v - low) / (high - low))
    ticks: list[float] = []
    for count in range(most, 0, -1):
        ticks = _log_ticks(low, high, count) if log else _ticks(low, high, count)
        if room is None or _fits([(place(tick) * room, write(tick)) for tick in ticks], axis):
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def percent(value: float) -> str:
    """A share as a tick label: 55 %."""
    return f"{100 * value:.4g} %"


def _fits(labels: Sequence[tuple[float, str]], axis: Any) -> bool:
    """Whether labels at these inches stand clear of each other."""
    points = axis.get_tick_params().get("labelsize", WIDE.font - 1)
    ends = [(x - width_of(text, points) / 2, x + width_of(text, points) / 2) for x, text in sorted(labels)]
    return all(left[1] + 0.06 < right[0] for left, right in itertools.pairwise(ends))


def plain(value: float) -> str:
    """A number as one writes it: 0.02, 5.5, 1,200; powers of ten only for the very large."""
    if abs(value) >= 1e6:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10**exponent:g}e{exponent}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers at equal distances."""
    from matplotlib.ticker import MaxNLocator

    found: Any = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = [float(tick) for tick in found if low <= tick <= high]
    return inside[:: math.ceil(len(inside) / most)] if len(inside) > most else inside


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between ``low`` and ``high``, as many as there may be."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[list[float]] = [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]
    found: list[float] = []
    for digits in choices:
        found = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if min(3, most) <= len(found) <= most:
            return found
    if high < 10 * low:
        return _ticks(low, high, max(1, most - 1))
    found = [d * 10.0**e for e in decades for d in (1, 3) if low <= d * 10.0**e <= high]
    return found[:: math.ceil(len(found) / most)]
