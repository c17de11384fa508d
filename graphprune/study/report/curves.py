"""Quality along the axis that a study follows: one panel per model and variant, or per setting where there are many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from graphprune.study.findings import Findings
from graphprune.study.layout import Facet, Place
from graphprune.study.metrics import Metric
from graphprune.study.report.axes import percent, value_axis
from graphprune.study.report.figures import (
    DIRECT,
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
    spread,
    width_of,
    wrap,
)
from graphprune.study.report.words import count, range_words, told
from graphprune.study.verdicts import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = dict[str, list[Estimate | None]]
Shown = tuple[Metric, Facet]
"""A panel."""


def pictures(findings: Findings, metric: Metric) -> list[Picture]:
    """The figures for what matters most; none where there is nothing to follow it along."""
    layout = findings.layout
    if layout.across is None or len(layout.points) < 2:
        return []
    shown = [(metric, facet) for facet in layout.facets if _lines(findings, metric, facet)]
    if not shown:
        return []
    stem = file_name(f"quality-{metric.column}")
    mean = "geometric mean" if metric.ratio else "mean"
    better = "lower is better" if metric.lower else "higher is better"
    caption = f"{told(metric.label)} along {layout.across}; {mean} of {_seeds(findings)}, {better}.{_bars(findings)}"
    caption += " Dashed grey: the model as it came." if metric.dense else ""
    if len(layout.settings) <= MANY:
        return [Picture(stem, _alt(findings, shown), caption, partial(_shared, findings, shown))]
    caption += f" One panel per {layout.series}, best first at the last {layout.across}; all others in grey behind it."
    return [
        Picture(
            stem if len(shown) == 1 else f"{stem}-{number}",
            _alt(findings, [panel]),
            f"For {layout.title(panel[1])}: {caption}" if layout.title(panel[1]) else caption,
            partial(_apart, findings, *panel),
        )
        for number, panel in enumerate(shown, start=1)
    ]


def others(findings: Findings, metrics: Sequence[Metric]) -> list[Picture]:
    """One figure for several metrics, a panel per metric and facet; none with many settings, whose tables say it."""
    layout = findings.layout
    if layout.across is None or len(layout.points) < 2 or len(layout.settings) > MANY:
        return []
    shown = [(metric, facet) for metric in metrics for facet in layout.facets if _lines(findings, metric, facet)]
    if not shown:
        return []
    caption = f"Other measures along {layout.across}; means of {_seeds(findings)}.{_bars(findings)}"
    caption += " Dashed grey: the model as it came." if any(metric.dense for metric, _ in shown) else ""
    return [Picture("quality-others", _alt(findings, shown), caption, partial(_shared, findings, shown))]


def _seeds(findings: Findings) -> str:
    return count(len(findings.layout.seeds), "seed")


def _bars(findings: Findings) -> str:
    return " Bars: smallest to largest over the seeds." if len(findings.layout.seeds) > 1 else ""


def file_name(text: str) -> str:
    """A text as a part of a file's name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in text)
    return "-".join(part for part in kept.split("-") if part)


def _lines(findings: Findings, metric: Metric, facet: Facet) -> Lines:
    """Estimates of every setting at every point; settings without any are left out."""
    layout = findings.layout
    standings = [findings.standing(metric, Place(facet, point)) for point in layout.points]
    found = {name: [s.estimates.get(name) for s in standings] for name in layout.settings}
    return {name: line for name, line in found.items() if any(e and math.isfinite(e.mean) for e in line)}


def _range(lines: Sequence[Lines], dense: Sequence[float]) -> tuple[float, float]:
    ends = [end for group in lines for line in group.values() for e in line if e for end in (e.smallest, e.largest)]
    return min([*ends, *dense]), max([*ends, *dense])


def _dense(findings: Findings, metric: Metric, facet: Facet) -> float | None:
    model = findings.layout.model(facet)
    value = metric.dense.get(model) if model is not None else None
    return value if value is not None and math.isfinite(value) else None


# --- few settings: all in one panel ---------------------------------------------------------------------


def _shared(findings: Findings, shown: Sequence[Shown], canvas: Canvas) -> Figure:
    layout = findings.layout
    names = [name for name in layout.settings if any(name in _lines(findings, *panel) for panel in shown)]
    direct = len(names) <= DIRECT
    columns = min(len(shown), 3 if canvas.wide else 1)
    known = [(metric, _dense(findings, metric, facet)) for metric, facet in shown]
    baselines = [metric.show(dense) for metric, dense in known if dense is not None]
    ends = [*names, *(f"dense {text}" for text in baselines)] if direct else [*baselines, ""]
    right = min(max(width_of(text, canvas.font) for text in ends) + 0.15, 1.3)
    keys = [*names, *(["dense model"] if baselines else [])]
    head = 0.06 if direct else legend_height(keys, canvas)
    titled = any(layout.title(facet) for _, facet in shown)
    height = {1: 4.2, 2: 3.3, 3: 2.6}[columns] if canvas.wide else 2.5
    grid = Grid(canvas, len(shown), columns, height, 0.76, right, 0.32 if titled else 0.16, 0.55, head)
    figure, panels = grid.make()
    handles: dict[str, Any] = {}
    for panel, (metric, facet) in zip(panels, shown, strict=True):
        lines, dense = _lines(findings, metric, facet), _dense(findings, metric, facet)
        low, high = _range([lines], [] if dense is None else [dense])
        value_axis(panel.yaxis, low, high, log=metric.ratio, show=None if metric.ratio else percent)
        _points_axis(findings, panel, canvas, grid.panel_width)
        for number, name in enumerate(layout.settings):
            if name in lines:
                handles[name] = _line(findings, panel, lines[name], _aside(findings, number), **look(number))
        if dense is not None:
            handles["dense model"] = _dense_line(panel, metric, dense, canvas, label=not direct)
        if direct:
            _end_labels(findings, panel, metric, lines, dense, grid, canvas)
        panel.set_title(fit(layout.title(facet), grid.panel_width, canvas.font))
        panel.set_ylabel(fit(told(metric.label), height, canvas.font))
        panel.set_xlabel(layout.across or "")
    if not direct:
        add_legend(figure, [handles[name] for name in keys], keys, canvas)
    return figure


def _aside(findings: Findings, number: int) -> float:
    """A small step to the side, so that bars of different settings do not hide each other."""
    positions, count = findings.layout.positions, len(findings.layout.settings)
    gaps = [b - a for a, b in itertools.pairwise(positions) if b > a]
    if findings.layout.numeric:
        room = min(min(0.2, 0.03 * count) * min(gaps, default=1.0), 0.08 * (positions[-1] - positions[0]))
    else:
        room = 0.6
    return (number - (count - 1) / 2) / max(1, count) * room


def _line(findings: Findings, panel: Axes, line: Sequence[Estimate | None], aside: float, **style: Any) -> Any:
    """A setting's points with bars; joined only where the axis is one of numbers."""
    known = [(x + aside, e) for x, e in zip(findings.layout.positions, line, strict=True) if e is not None]
    x, y = [p for p, _ in known], [e.mean for _, e in known]
    below, above = [e.mean - e.smallest for _, e in known], [e.largest - e.mean for _, e in known]
    if not findings.layout.numeric:
        style["linestyle"] = "none"
    return panel.errorbar(
        x, y, yerr=[[max(0.0, b) for b in below], [max(0.0, a) for a in above]], elinewidth=1.1, capsize=2, **style
    )


def _points_axis(findings: Findings, panel: Axes, canvas: Canvas, width: float) -> None:
    layout = findings.layout
    positions = layout.positions
    span = (positions[-1] - positions[0]) or 1.0
    pad = 0.06 * span if layout.numeric else 0.5
    panel.set_xlim(positions[0] - pad, positions[-1] + pad)
    room = width / max(1, len(positions))
    points = [wrap(p, room - 0.06, canvas.font - 1) for p in layout.points]
    if layout.numeric:  # where numbers lie too close, only some are written
        inches = [(x - positions[0]) / (span + 2 * pad) * width for x in positions]
        last = -math.inf
        for index, text in enumerate(layout.points):
            half = width_of(text, canvas.font - 1) / 2 + 0.04
            points[index] = text if inches[index] - half > last else ""
            last = inches[index] + half if points[index] else last
    panel.set_xticks(positions, points)


def _dense_line(panel: Axes, metric: Metric, dense: float, canvas: Canvas, *, label: bool) -> Any:
    """A dashed line, its value beside its end; what settings are called may stand there, too."""
    if label:
        panel.annotate(
            metric.show(dense),
            (1.0, dense),
            (3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=FAINT,
            fontsize=canvas.font - 1,
            annotation_clip=False,
        )
    return panel.axhline(dense, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.0, zorder=0)


def _end_labels(
    findings: Findings, panel: Axes, metric: Metric, lines: Lines, dense: float | None, grid: Grid, canvas: Canvas
) -> None:
    """Names beside the last points, and that of the dense model beside its line, moved apart."""
    last = {name: next(e for e in reversed(line) if e is not None).mean for name, line in lines.items()}
    colors = {name: look(findings.layout.settings.index(name))["color"] for name in last}
    if dense is not None:
        last[f"dense {metric.show(dense)}"] = dense
    low, high = panel.get_ylim()
    log = panel.get_yscale() == "log"
    places = [
        (math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)) * grid.height
        for y in last.values()
    ]
    moved = spread(places, canvas.font / 72 * 1.3, 0.05, grid.height)
    for name, place in zip(last, moved, strict=True):
        panel.annotate(
            fit(name, grid.right - 0.1, canvas.font),
            (1.0, place / grid.height),
            (4, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colors.get(name, FAINT),
            annotation_clip=False,
        )


# --- many settings: a panel each ------------------------------------------------------------------------


def _apart(findings: Findings, metric: Metric, facet: Facet, canvas: Canvas) -> Figure:
    layout, lines = findings.layout, _lines(findings, metric, facet)
    dense = _dense(findings, metric, facet)

    def final(name: str) -> float:
        value = next(e for e in reversed(lines[name]) if e is not None).mean
        return value if metric.lower else -value

    names = sorted(lines, key=final)
    columns = 6 if canvas.wide else 2
    grid = Grid(canvas, len(names), columns, 1.15 if canvas.wide else 1.05, 0.47, 0.1, 0.44, 0.36, 0.05, 0.02)
    figure, panels = grid.make()
    low, high = _range([lines], [] if dense is None else [dense])
    for panel, name in zip(panels, names, strict=True):
        for other in names:
            known = [(x, e.mean) for x, e in zip(layout.positions, lines[other], strict=True) if e is not None]
            if other != name:
                panel.plot([x for x, _ in known], [y for _, y in known], color=GREY, linewidth=0.5, zorder=1)
        if dense is not None:
            panel.axhline(dense, color=FAINT, linestyle=(0, (4, 3)), linewidth=0.9, zorder=2)
        value_axis(panel.yaxis, low, high, log=metric.ratio, most=4, show=None if metric.ratio else percent)
        _points_axis(findings, panel, canvas, grid.panel_width)
        style = {"color": PALETTE[0], "linestyle": "-", "marker": "o", "markersize": 3.2, "zorder": 3}
        _line(findings, panel, lines[name], 0.0, **style)
        panel.tick_params(labelsize=canvas.font - 2)
        panel.set_title(wrap(name, grid.panel_width + 0.22, canvas.font - 0.5), fontsize=canvas.font - 0.5, x=-0.12)
    return figure


def _alt(findings: Findings, shown: Sequence[Shown]) -> str:
    layout, parts = findings.layout, []
    most = 12 if len(shown) == 1 else 3
    for metric, facet in shown:
        lines = _lines(findings, metric, facet)
        told_lines = []
        for name, line in list(lines.items())[:most]:
            known = [(point, e.mean) for point, e in zip(layout.points, line, strict=True) if e is not None]
            told_lines.append(f"{name} {range_words(metric, known, layout.across or '')}")
        if len(lines) > most:
            told_lines.append(f"{len(lines) - most} more in the table")
        title = f" ({layout.title(facet)})" if layout.title(facet) else ""
        parts.append(f"{told(metric.label)} along {layout.across}{title}: {'; '.join(told_lines)}.")
    return " ".join(parts)
