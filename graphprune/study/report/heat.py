"""Heat maps: a row per setting, a column per layer or setting, one colour scale for all panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.study.report.figures import FAINT, MAPS, Canvas, Grid, fit, fit_all, width_of, wrap
from graphprune.study.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heat:
    """A panel: ``values`` of shape (rows, columns), NaN where there is none."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Floats
    label: str = ""


def draw(
    heats: Sequence[Heat],
    canvas: Canvas,
    *,
    low: float,
    high: float,
    scale: str,
    numbers: bool = False,
    beside: int = 3,
    room: float | None = None,
) -> Figure:
    """The panels with the colour scale ``scale`` above them.

    Args:
        heats: the panels.
        canvas: the size.
        low: the value with the darkest colour.
        high: the value with the lightest.
        scale: what the colours mean.
        numbers: whether values are written into the cells where they fit.
        beside: panels that belong beside each other, if there is room.
        room: inches that the inside of a panel needs; by default what a few layers do.
    """
    names = list(dict.fromkeys(name for heat in heats for name in heat.rows))
    left = min(2.2 if canvas.wide else 1.3, max(width_of(name, canvas.font) for name in names) + 0.14)
    room = room or (1.0 if canvas.wide else 0.8)
    fitting = max(1, int((canvas.width - left) / (room + 0.24)))
    columns = min(len(heats), beside, fitting)
    foot = 0.5 if any(heat.label for heat in heats) else 0.32
    height = len(names) * canvas.font / 72 * 1.5
    grid = Grid(canvas, len(heats), columns, height, left, 0.12, 0.34, foot, 0.62, gutter=0.12)
    if any(width_of(heat.title, canvas.font) > grid.panel_width for heat in heats):
        grid = replace(grid, top=0.5)  # titles of two lines
    short = dict(zip(names, fit_all(names, left - 0.1, canvas.font), strict=True))
    figure, panels = grid.make()
    image = None
    for index, (panel, heat) in enumerate(zip(panels, heats, strict=True)):
        labels = [short[name] for name in names] if index % columns == 0 else [""] * len(names)
        rows = np.full((len(names), heat.values.shape[1]), np.nan)
        rows[[names.index(name) for name in heat.rows]] = heat.values
        image = _panel(panel, replace(heat, rows=labels, values=rows), grid, canvas, low, high, numbers=numbers)
    assert image is not None
    length = min(3.0, canvas.width - 0.4)
    box = (0.1 / canvas.width, 1 - 0.14 / grid.figure_height, length / canvas.width, 0.12 / grid.figure_height)
    bar = figure.colorbar(image, cax=figure.add_axes(box), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=canvas.font - 1.5, pad=1.5)
    room = canvas.width - length - 0.35
    if width_of(scale, canvas.font) <= room:
        bar.ax.annotate(scale, (1, 0.5), (10, 0), xycoords="axes fraction", textcoords="offset points", va="center")
    else:
        label = fit(scale, canvas.width - 0.2, canvas.font)
        bar.ax.annotate(label, (0, 0), (0, -17), xycoords="axes fraction", textcoords="offset points", va="top")
    return figure


def _panel(panel: Axes, heat: Heat, grid: Grid, canvas: Canvas, low: float, high: float, *, numbers: bool) -> Any:
    values = np.ma.masked_invalid(heat.values)
    panel.set_facecolor("#eeeeee")
    image = panel.imshow(values, aspect="auto", cmap=MAPS, vmin=low, vmax=high, interpolation="nearest")
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_yticks(range(len(heat.rows)), list(heat.rows), fontsize=canvas.font)
    room = grid.panel_width / max(1, len(heat.columns))
    widest = max(width_of(label, canvas.font - 1.5) for label in heat.columns) + 0.08
    step = max(1, math.ceil(widest / room))
    ticks = range(0, len(heat.columns), step)
    panel.set_xticks(ticks, [heat.columns[tick] for tick in ticks], fontsize=canvas.font - 1.5)
    panel.tick_params(length=0, pad=3)
    panel.set_title(wrap(heat.title, grid.panel_width + 0.1, canvas.font))
    if heat.label:
        panel.set_xlabel(heat.label, color=FAINT, fontsize=canvas.font - 1)
    if numbers and room > width_of(".88", canvas.font - 2) + 0.03:
        for (row, column), value in np.ndenumerate(heat.values):
            if math.isfinite(value):
                text = "1" if value > 0.995 else f"{value:.2f}".lstrip("0") if value >= 0.005 else "0"
                color = "black" if value > (low + high) / 2 else "white"
                panel.text(column, row, text, ha="center", va="center", color=color, fontsize=canvas.font - 2)
    return image
