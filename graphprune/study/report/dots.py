"""Panels with a row per setting: a dot where its number is, a bar for what is uncertain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphprune.study.report.axes import percent, value_axis
from graphprune.study.report.figures import (
    FAINT,
    PALETTE,
    Canvas,
    Grid,
    fit,
    fit_all,
    width_of,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Dot:
    """A row: ``value`` is NaN where there is none, and then ``note`` says why."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    filled: bool = True
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """Rows under a title, and the axis below them."""

    title: str
    label: str
    dots: Sequence[Dot]
    log: bool = False
    percent: bool = False
    line: float | None = None
    show: Callable[[float], str] | None = None


def draw(panels: Sequence[Panel], canvas: Canvas, *, shared: bool = False) -> Figure:
    """The panels side by side as far as there is room.

    Args:
        panels: at least one.
        canvas: the size.
        shared: whether all of them have the same rows in the same order, which are then named once per line.
    """
    names = list(dict.fromkeys(dot.name for panel in panels for dot in panel.dots))
    most = 2.3 if canvas.wide else 1.35
    left = min(most, max(width_of(name, canvas.font) for name in names) + 0.16)
    inside = 1.15 if canvas.wide else 0.85
    fitting = int((canvas.width - left) / (inside + 0.4)) if shared else int(canvas.width / (left + 1.9))
    columns = max(1, min(len(panels), fitting, 6 if shared else 4))
    height = max(len(panel.dots) for panel in panels) * canvas.font / 72 * 1.5 + 0.1
    bottom = 0.55 if any(panel.label for panel in panels) else 0.36
    grid = Grid(canvas, len(panels), columns, height, left, 0.2, 0.34, bottom, gutter=0.2 if shared else None)
    if any(width_of(panel.title, canvas.font * 1.1) > grid.panel_width for panel in panels):
        grid = replace(grid, top=0.5)  # titles of two lines
    short = dict(zip(names, fit_all(names, left - 0.12, canvas.font), strict=True))
    figure, axes = grid.make()
    for index, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        first = not shared or index % columns == 0
        _panel(axis, panel, [short[dot.name] if first else "" for dot in panel.dots], grid, canvas)
    return figure


def _panel(axis: Axes, panel: Panel, labels: Sequence[str], grid: Grid, canvas: Canvas) -> None:
    known = [dot for dot in panel.dots if math.isfinite(dot.value)]
    bounds = [dot.value for dot in known] + ([panel.line] if panel.line is not None else [])
    # Intervals of settings that scatter wildly may leave the panel; the dots may not.
    spans = [end for dot in known for end in (dot.low, dot.high) if math.isfinite(end) and end > 0]
    if bounds:
        low, high = min(bounds), max(bounds)
        reach = (high / low) ** 0.35 * 1.1 if panel.log else 0.35 * (high - low) + 0.02 * abs(high)
        floor, ceiling = (low / reach, high * reach) if panel.log else (low - reach, high + reach)
        low = max(floor, min([low, *spans]))
        high = min(ceiling, max([high, *spans]))
        show = panel.show or (percent if panel.percent else None)
        most = 4 if grid.panel_width > 1.6 else 3
        value_axis(axis.xaxis, low, high, log=panel.log, most=most, show=show, room=grid.panel_width)
    if panel.line is not None:
        axis.axvline(panel.line, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.0, zorder=0.5)
    for row, dot in enumerate(panel.dots):
        axis.axhline(row, color="#ececec", linewidth=0.7, zorder=0)
        if not math.isfinite(dot.value):
            note = fit(dot.note or "no number", grid.panel_width - 0.1, canvas.font - 1)
            axis.annotate(
                note, (0, row), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", color=FAINT, fontsize=canvas.font - 1,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
            continue
        color = PALETTE[0] if dot.filled else FAINT
        if math.isfinite(dot.low) and math.isfinite(dot.high):
            axis.plot([dot.low, dot.high], [row, row], color=color, linewidth=1.6, solid_capstyle="butt")
        face = color if dot.filled else "white"
        axis.plot(dot.value, row, "o", markersize=5.5, markerfacecolor=face, markeredgecolor=color, zorder=3)
    rows = max(len(panel.dots), round((grid.height - 0.1) / (canvas.font / 72 * 1.5)))
    axis.set_ylim(rows - 0.4, -0.6)
    axis.set_yticks(range(len(panel.dots)), labels, fontsize=canvas.font)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_title(wrap(panel.title, grid.panel_width / 1.1, canvas.font), fontweight="bold")
    axis.set_xlabel(fit(panel.label, grid.panel_width + 0.3, canvas.font))
