"""Quality against what a model costs to run: latency, parameters, operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from graphprune.evaluate.latency import Latency
from graphprune.report.measures import Measures
from graphprune.study.findings import Findings
from graphprune.study.layout import Facet, Place
from graphprune.study.metrics import Metric
from graphprune.study.records import CellRecord
from graphprune.study.report import words
from graphprune.study.report.axes import percent, value_axis
from graphprune.study.report.facets import Part, per_facet
from graphprune.study.report.figures import (
    GREY,
    MANY,
    PALETTE,
    Canvas,
    Grid,
    Picture,
    add_legend,
    legend_height,
    look,
)
from graphprune.study.report.section import Block, Cell, Section, Table
from graphprune.study.report.words import told
from graphprune.study.statistics import mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLOCK = 0.02
"""What repeated timings of the same thing differ by."""


@dataclass(frozen=True)
class Cost:
    """What a result costs to run; costs that differ by a share of less than ``tolerance`` count as the same."""

    name: str
    of: Callable[[CellRecord], float]
    show: Callable[[float], str]
    tolerance: float = 0.0


@dataclass(frozen=True)
class Spot:
    """A setting at a point: its cost and quality, means over seeds."""

    setting: str
    point: str
    x: float
    y: float


def _prefill(latency: Latency) -> float:
    return latency.prefill.median


def _decode(latency: Latency) -> float:
    return math.nan if latency.decode is None else latency.decode.median


def _timed(read: Callable[[Latency], float]) -> Callable[[CellRecord], float]:
    def of(cell: CellRecord) -> float:
        known = cell.evaluation.latency if cell.evaluation is not None else None
        return math.nan if known is None else read(known)

    return of


def _sized(read: Callable[[Measures], float | None]) -> Callable[[CellRecord], float]:
    def of(cell: CellRecord) -> float:
        value = None if cell.report is None else read(cell.report.after)
        return math.nan if value is None else float(value)

    return of


def costs() -> tuple[Cost, ...]:
    """Of running a result, what a user waits for first."""
    sizes: list[tuple[str, Callable[[Measures], float | None], Callable[[float], str]]] = [
        ("parameters", lambda m: m.parameters, words.amount),
        ("MACs of a forward pass", lambda m: m.macs, words.amount),
        ("KV-cache bytes per token", lambda m: m.cache_bytes_per_token, words.size),
    ]
    return (
        Cost("time to read a prompt", _timed(_prefill), words.seconds, _CLOCK),
        Cost("time per decoded token", _timed(_decode), words.seconds, _CLOCK),
        *(Cost(name, _sized(read), show) for name, read, show in sizes),
    )


def section(findings: Findings) -> Section | None:
    """None where no quality is known."""
    if not findings.metrics:
        return None
    metric = findings.metrics[0]
    blocks = per_facet(findings.layout, lambda part: _part(findings, metric, part))
    return Section("cost", f"{told(metric.label)} against running cost", blocks) if blocks else None


def _part(findings: Findings, metric: Metric, part: Part) -> list[Block]:
    layout = findings.layout
    found = [cost for cost in costs() if _varies(_spots(findings, metric, part.facet, cost))]
    if not found:
        return []
    few = len(layout.settings) <= MANY
    lines = ", lines follow " + layout.across if layout.across and few else ""
    caption = f"{part.title}{metric.label} against cost, means over seeds{lines}; the better ones are "
    caption += "below and to the left." if metric.lower else "above and to the left."
    if not few:
        caption += " In colour: what nothing else beats in both, numbered as in the table below; "
        caption += "times within 2 % count as the same."
    alt = f"{part.title}{metric.label} against cost. {_words(findings, metric, part.facet, found)}"
    draw = partial(_draw, findings, metric, part.facet, found)
    return [Picture(f"cost{part.suffix}", alt, told(caption), draw), _table(findings, metric, part, found)]


def _spots(findings: Findings, metric: Metric, facet: Facet, cost: Cost) -> list[Spot]:
    layout, found = findings.layout, []
    for point in layout.points:
        estimates = findings.standing(metric, Place(facet, point)).estimates
        for name in layout.settings:
            x = mean([cost.of(cell) for cell in layout.select(facet, point, name) if cell.status == "done"])
            if name in estimates and math.isfinite(x) and x > 0:
                found.append(Spot(name, point, x, estimates[name].mean))
    return found


def _varies(spots: Sequence[Spot]) -> bool:
    values = [spot.x for spot in spots]
    return len(values) > 1 and max(values) > 1.001 * min(values)


def front(spots: Sequence[Spot], *, lower: bool, tolerance: float = 0.0) -> list[Spot]:
    """The spots that no better one costs as little as, cheapest first.

    Args:
        spots: settings.
        lower: whether lower quality values are better.
        tolerance: the share by which costs must differ to count as different.
    """
    sign = 1.0 if lower else -1.0
    kept: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (sign * s.y, s.x)):
        if all(spot.x * (1 + tolerance) < other.x for other in kept):
            kept.append(spot)
    return kept[::-1]


def _draw(findings: Findings, metric: Metric, facet: Facet, costs: Sequence[Cost], canvas: Canvas) -> Figure:
    layout = findings.layout
    few = len(layout.settings) <= MANY
    names = [
        n for n in layout.settings if any(s.setting == n for c in costs for s in _spots(findings, metric, facet, c))
    ]
    columns = min(len(costs), 3) if canvas.wide else 1
    head = legend_height(names, canvas) if few else 0.05
    grid = Grid(canvas, len(costs), columns, 2.5 if canvas.wide else 2.1, 0.62, 0.15, 0.14, 0.55, head)
    figure, panels = grid.make()
    handles = {}
    for panel, cost in zip(panels, costs, strict=True):
        spots = _spots(findings, metric, facet, cost)
        xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
        if not few and metric.lower:  # room for the numbers below the dots
            ys.append(min(ys) * (min(ys) / max(ys)) ** 0.06 if metric.ratio else min(ys))
        value_axis(panel.yaxis, min(ys), max(ys), log=metric.ratio, show=None if metric.ratio else percent)
        value_axis(panel.xaxis, min(xs), max(xs), log=False, most=5, show=cost.show, room=grid.panel_width)
        if few:
            for number, name in enumerate(layout.settings):
                mine = [(spot.x, spot.y) for spot in spots if spot.setting == name]
                if mine:
                    (handles[name],) = panel.plot(
                        *zip(*mine, strict=True), linewidth=0.9, markersize=4.5, **look(number)
                    )
        else:
            _many(panel, spots, cost, metric, grid, canvas)
        panel.set_xlabel(cost.name)
        panel.set_ylabel(told(metric.label))
    if few:
        add_legend(figure, [handles[name] for name in names], names, canvas)
    return figure


def _many(panel: Axes, spots: Sequence[Spot], cost: Cost, metric: Metric, grid: Grid, canvas: Canvas) -> None:
    panel.plot([s.x for s in spots], [s.y for s in spots], "o", color=GREY, markersize=3, zorder=1)
    leading = front(spots, lower=metric.lower, tolerance=cost.tolerance)
    panel.plot(
        [s.x for s in leading], [s.y for s in leading], "o-", color=PALETTE[1], markersize=4.5, linewidth=1, zorder=2
    )
    # A number beside each, but for those so close to the one before that two numbers would run into each other.
    inside = panel.transData + panel.transAxes.inverted()
    last = (-9.0, -9.0)
    for number, spot in enumerate(leading, start=1):
        u, v = inside.transform((spot.x, spot.y))
        here = (u * grid.panel_width, v * grid.height)
        if math.dist(here, last) > canvas.font / 72 * 1.9:
            down = -1 if metric.lower else 1
            panel.annotate(
                str(number), (spot.x, spot.y), (-5, 4 * down), textcoords="offset points", ha="right",
                va="top" if metric.lower else "bottom", color=PALETTE[1], fontsize=canvas.font - 1, zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.8},
            )  # fmt: skip
            last = here


def _words(findings: Findings, metric: Metric, facet: Facet, costs: Sequence[Cost]) -> str:
    parts = []
    for cost in costs:
        leading = front(_spots(findings, metric, facet, cost), lower=metric.lower, tolerance=cost.tolerance)
        ends = dict.fromkeys((leading[0], leading[-1]))
        told_ends = words.join([f"{cost.show(s.x)} with {metric.show(s.y)} ({s.setting})" for s in ends])
        parts.append(
            f"{told(cost.name)}: not beaten in both are {len(leading)}, from {told_ends}.".replace(" and ", " to ")
        )
    return " ".join(parts)


def _table(findings: Findings, metric: Metric, part: Part, costs: Sequence[Cost]) -> Table:
    layout, rows = findings.layout, list[list[Cell | str]]()
    for cost in costs:
        for number, spot in enumerate(
            front(_spots(findings, metric, part.facet, cost), lower=metric.lower, tolerance=cost.tolerance), start=1
        ):
            rows.append(
                [
                    cost.name,
                    Cell(str(number), number),
                    spot.setting,
                    *([spot.point] if layout.across else []),
                    Cell(cost.show(spot.x), spot.x),
                    Cell(metric.show(spot.y), spot.y),
                ]
            )
    across = [layout.across] if layout.across else []
    head = ["cost", "number", layout.series, *across, "costs", metric.label]
    return Table(head, rows, told(f"{part.title}not beaten in both quality and cost"), hidden=True)
