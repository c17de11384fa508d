"""Mask similarity between settings: per layer, attention and MLP apart, at every point, and of every pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.study.findings import Findings
from graphprune.study.layout import Place
from graphprune.study.masks import Similarity, kinds, similarity
from graphprune.study.report import heat
from graphprune.study.report.facets import Part, per_facet
from graphprune.study.report.figures import (
    FAINT,
    MANY,
    Canvas,
    Grid,
    Picture,
    add_legend,
    fit,
    legend_height,
    look,
)
from graphprune.study.report.section import Block, Cell, Section, Table
from graphprune.study.report.words import told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[tuple[str, str], Similarity]
"""By kind of groups and point."""
NAMES = {"attention": "attention", "mlp": "MLP", "moe": "experts"}


def section(findings: Findings) -> Section | None:
    """None where there are not two settings with plans at the same place."""
    layout = findings.layout
    if len(layout.settings) < 2:
        return None

    def part(of: Part) -> list[Block]:
        found = {
            (name, point): value
            for name in kinds(layout.select(of.facet))
            for point in layout.points
            if (value := similarity(layout, Place(of.facet, point), name)) is not None
        }
        return [*_pictures(findings, of, found), _table(findings, of, found)] if found else []

    blocks = per_facet(layout, part)
    if not blocks:
        return None
    text = (
        "Which units go: the overlap of what two settings remove from the same model with the same seed, "
        "|A ∩ B| / |A ∪ B| (Jaccard), 1 for the same units and 0 for none in common; the mean over the groups of a "
        "layer and over seeds. LoRAPrune (arXiv 2305.18403, Figure 4) compares masks per layer without giving its "
        "formula; the share of units on which two masks agree, another reading, is in the table. It is close to 1 for "
        "any two masks that remove little."
    )
    return Section("similarity", "Do the settings remove the same units?", [text, *blocks])


def _name(of: str) -> str:
    return NAMES.get(of, of)


def _pictures(findings: Findings, part: Part, found: Found) -> list[Picture]:
    layout = findings.layout
    first = layout.settings[0]
    title = part.title
    few = len(layout.settings) <= MANY
    along = Picture(
        f"similarity-layers{part.suffix}",
        f"{title}Overlap with {first} per layer. {_words(findings, found)}",
        told(f"{title}overlap of the removed units with those of {first}, per layer")
        + ("; dotted: by chance." if few else "."),
        lambda canvas: _curves(findings, found, canvas) if few else _layers(findings, found, canvas),
    )
    pairs = Picture(
        f"similarity-pairs{part.suffix}",
        f"{title}Overlap of every pair of settings, mean over layers. {_words(findings, found)}",
        told(f"{title}overlap of every pair, mean over layers. Columns have the numbers of the rows."),
        lambda canvas: _matrix(findings, found, canvas),
    )
    return [along, pairs] if len(layout.settings) > 2 else [along]


def _words(findings: Findings, found: Found) -> str:
    """The range over the other settings at the first and at the last point."""
    layout, parts = findings.layout, []
    for of in dict.fromkeys(of for of, _ in found):
        points = [point for kind, point in found if kind == of]
        for point in dict.fromkeys((points[0], points[-1])):
            overlap = found[of, point].overall(found[of, point].jaccard)[0, 1:]
            known = overlap[np.isfinite(overlap)]
            if known.size:
                where = f" at {layout.at(point)}" if layout.at(point) else ""
                parts.append(f"{told(_name(of))}{where}: {known.min():.2f} to {known.max():.2f}.")
    return " ".join(parts)


def _curves(findings: Findings, found: Found, canvas: Canvas) -> Figure:
    """A panel per kind and point, a line per setting."""
    layout = findings.layout
    others = list(enumerate(layout.settings))[1:]
    columns = min(len(layout.points), 5) if canvas.wide else 2
    if canvas.wide and columns == 1:
        columns = min(2, len(found))
    names = [name for _, name in others]
    grid = Grid(
        canvas, len(found), columns, 1.5 if canvas.wide else 1.15, 0.42, 0.08, 0.32, 0.48, legend_height(names, canvas)
    )
    figure, panels = grid.make()
    handles = {}
    for panel, ((of, point), value) in zip(panels, found.items(), strict=True):
        for number, name in others:
            (handles[name],) = panel.plot(value.layers, value.jaccard[:, 0, number], markersize=3.5, **_thin(number))
        panel.plot(value.layers, _rowmean(value.chance[:, 0, 1:]), ":", color=FAINT, linewidth=1.2)
        panel.set_ylim(-0.04, 1.04)
        panel.set_yticks([0, 0.5, 1])
        step = max(1, math.ceil(len(value.layers) / (6 if canvas.wide else 5)))
        panel.set_xticks(value.layers[::step])
        title = ", ".join(part for part in (_name(of), layout.at(point)) if part)
        panel.set_title(fit(title, grid.panel_width + 0.1, canvas.font))
        panel.set_xlabel("layer", fontsize=canvas.font - 1)
    add_legend(figure, [handles[name] for name in names], names, canvas)
    return figure


def _beside(findings: Findings, found: Found) -> int:
    """Panels in a line: those of a kind, or with one point all kinds."""
    return len(findings.layout.points) if len(findings.layout.points) > 1 else len(found)


def _thin(number: int) -> dict[str, Any]:
    return {**look(number), "linewidth": 1.2}


def _rowmean(values: np.ndarray) -> list[float]:
    return [float(np.mean(row[np.isfinite(row)])) if np.isfinite(row).any() else math.nan for row in values]


def _layers(findings: Findings, found: Found, canvas: Canvas) -> Figure:
    """Many settings: a row each, in their order."""
    layout, heats = findings.layout, []
    for (of, point), value in found.items():
        title = ", ".join(part for part in (_name(of), layout.at(point)) if part)
        rows = value.jaccard[:, 0, 1:].T
        heats.append(heat.Heat(title, layout.settings[1:], [str(layer) for layer in value.layers], rows, "layer"))
    return heat.draw(
        heats, canvas, low=0.0, high=1.0, scale=f"overlap with {layout.settings[0]}", beside=_beside(findings, found)
    )


def _matrix(findings: Findings, found: Found, canvas: Canvas) -> Figure:
    layout, heats = findings.layout, []
    rows = [f"{number} {name}" for number, name in enumerate(layout.settings, start=1)]
    for (of, point), value in found.items():
        title = ", ".join(part for part in (_name(of), layout.at(point)) if part)
        heats.append(heat.Heat(title, rows, [str(k + 1) for k in range(len(rows))], value.overall(value.jaccard)))
    few = len(rows) <= MANY
    room = len(rows) * 0.24 if few else 1.3 if canvas.wide else 0.8
    return heat.draw(
        heats, canvas, low=0.0, high=1.0, scale="overlap of removed units",
        numbers=few, beside=_beside(findings, found), room=room,
    )  # fmt: skip


def _table(findings: Findings, part: Part, found: Found) -> Table:
    layout = findings.layout
    first, rows = layout.settings[0], list[list[Cell | str]]()
    for (of, point), value in found.items():
        overall = [value.overall(values)[0] for values in (value.jaccard, value.agreement, value.chance)]
        for number, name in list(enumerate(layout.settings))[1:]:
            if math.isfinite(overall[0][number]):
                cells = [Cell(f"{values[number]:.3f}", float(values[number])) for values in overall]
                rows.append([_name(of), *([point] if layout.across else []), name, *cells])
    across = [layout.across] if layout.across else []
    head = ["groups", *across, layout.series, "overlap", "agreement", "overlap by chance"]
    return Table(head, rows, told(f"{part.title}masks compared with those of {first}"), hidden=True)
