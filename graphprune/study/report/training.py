"""Training curves, with what was removed when."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from graphprune.study.findings import Findings
from graphprune.study.layout import Facet, Place
from graphprune.study.records import CellRecord
from graphprune.study.report.axes import value_axis
from graphprune.study.report.facets import Part, per_facet
from graphprune.study.report.figures import (
    FAINT,
    GREY,
    MANY,
    PALETTE,
    Canvas,
    Grid,
    Picture,
    add_legend,
    fit,
    legend_height,
    look,
    wrap,
)
from graphprune.study.report.section import Block, Section
from graphprune.study.report.words import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = list[tuple[float, float]]
_STEPS = "#e3e3e3"


def section(findings: Findings) -> Section | None:
    """None where nothing was trained."""
    blocks = per_facet(findings.layout, lambda part: _part(findings, part))
    return Section("training", "How did training go?", blocks) if blocks else None


def _part(findings: Findings, part: Part) -> list[Block]:
    layout, facet = findings.layout, part.facet
    points = [point for point in layout.points if _curves(findings, Place(facet, point))]
    if not points:
        return []
    few = len(layout.settings) <= MANY
    last = Place(facet, points[-1])
    where = "" if few or not layout.at(last.point) else f" at {layout.at(last.point)}"
    caption = f"{part.title}training loss by optimizer step{where}, mean over seeds."
    if any(cell.events for cell in layout.select(facet)):
        caption += " Ticks at the bottom: prune events."
        if few:
            caption += " Grey steps: how much of the target is gone, from nothing at the bottom to all at the top."
    if not few:
        caption += " The other settings are behind each in grey."
    alt = f"{part.title}Training loss. {_words(findings, last)}"
    draw = partial(_shared, findings, facet, points) if few else partial(_apart, findings, last)
    return [Picture(f"training{part.suffix}", alt, told(caption), draw)]


def _curves(findings: Findings, place: Place) -> dict[str, Curve]:
    """The loss of every setting by step; at every step the mean over the seeds that have it."""
    found = {}
    for name in findings.layout.settings:
        losses: dict[float, list[float]] = {}
        for cell in findings.layout.select(place.facet, place.point, name):
            for row in cell.log:
                if "loss" in row and "step" in row:
                    losses.setdefault(row["step"], []).append(row["loss"])
        if len(losses) > 1:
            found[name] = [(step, sum(values) / len(values)) for step, values in sorted(losses.items())]
    return found


def _words(findings: Findings, place: Place) -> str:
    curves = _curves(findings, place)
    where = findings.layout.at(place.point)
    parts = [f"{name} {curve[0][1]:.2f} to {curve[-1][1]:.2f}" for name, curve in list(curves.items())[:10]]
    return f"{told(where) + ': ' if where else ''}{'; '.join(parts)}."


def _shared(findings: Findings, facet: Facet, points: Sequence[str], canvas: Canvas) -> Figure:
    layout = findings.layout
    columns = min(3, len(points)) if canvas.wide else 1
    names = [n for n in layout.settings if any(n in _curves(findings, Place(facet, p)) for p in points)]
    height = {1: 3.6, 2: 3.0, 3: 2.3}[columns] if canvas.wide else 1.9
    head = legend_height(names, canvas)
    grid = Grid(canvas, len(points), columns, height, 0.66, 0.12, 0.32, 0.48, head)
    figure, panels = grid.make()
    handles = {}
    for panel, point in zip(panels, points, strict=True):
        curves = _curves(findings, Place(facet, point))
        values = [loss for curve in curves.values() for _, loss in curve]
        value_axis(panel.yaxis, min(values), max(values), log=False, most=5)
        _events(panel, layout.select(facet, point), steps=True)
        for number, name in enumerate(layout.settings):
            if name in curves:
                style = look(number)
                (handles[name],) = panel.plot(
                    *zip(*curves[name], strict=True),
                    color=style["color"], linestyle=style["linestyle"], marker=style["marker"],
                    markersize=4, markevery=(number % 4, max(1, len(curves[name]) // 6)), linewidth=1.3,
                )  # fmt: skip
        panel.set_title(fit(layout.at(point), grid.panel_width, canvas.font))
        panel.set_xlabel("step")
        panel.set_ylabel("loss")
    add_legend(figure, [handles[name] for name in names], names, canvas)
    return figure


def _events(panel: Axes, cells: Sequence[CellRecord], *, steps: bool) -> None:
    """A tick per event, and the removed part as steps behind the curves; of the first cell that has any."""
    events = next((cell.events for cell in cells if cell.events), ())
    if not events:
        return
    low, high = panel.get_ylim()
    at = [event.step for event in events]
    if steps:
        last = max(row.get("step", 0.0) for cell in cells for row in cell.log)
        tops = [low + event.fraction * (high - low) for event in events]
        panel.fill_between([*at, last], [*tops, tops[-1]], low, step="post", color=_STEPS, linewidth=0, zorder=0)
    panel.vlines(at, low, low + 0.035 * (high - low), color=FAINT, linewidth=1.0, zorder=1)


def _apart(findings: Findings, place: Place, canvas: Canvas) -> Figure:
    """A panel per setting, the others in grey."""
    curves = _curves(findings, place)
    columns = 6 if canvas.wide else 2
    grid = Grid(canvas, len(curves), columns, 1.1 if canvas.wide else 1.0, 0.47, 0.1, 0.44, 0.34, 0.05, 0.02)
    figure, panels = grid.make()
    values = [loss for curve in curves.values() for _, loss in curve]
    for panel, (name, curve) in zip(panels, curves.items(), strict=True):
        value_axis(panel.yaxis, min(values), max(values), log=False, most=4)
        _events(panel, findings.layout.select(place.facet, place.point, name), steps=False)
        for other, line in curves.items():
            if other != name:
                panel.plot(*zip(*line, strict=True), color=GREY, linewidth=0.4, zorder=2)
        panel.plot(*zip(*curve, strict=True), color=PALETTE[0], linewidth=1.4, zorder=3)
        panel.tick_params(labelsize=canvas.font - 2)
        panel.set_title(wrap(name, grid.panel_width + 0.22, canvas.font - 0.5), fontsize=canvas.font - 0.5, x=-0.12)
    return figure
