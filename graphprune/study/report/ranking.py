"""Settings ranked at every place, with intervals: which cannot be told from the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from graphprune.study.findings import Findings
from graphprune.study.layout import Place
from graphprune.study.metrics import Metric
from graphprune.study.records import CellRecord
from graphprune.study.report.curves import file_name
from graphprune.study.report.dots import Dot, Panel, draw
from graphprune.study.report.facets import Part, per_facet
from graphprune.study.report.figures import MANY, Picture
from graphprune.study.report.section import Block
from graphprune.study.report.words import join, told


def blocks(findings: Findings, metric: Metric) -> list[Block]:
    """A figure per facet, with a panel per point."""
    return per_facet(findings.layout, lambda part: _part(findings, metric, part))


def _part(findings: Findings, metric: Metric, part: Part) -> list[Block]:
    layout, facet = findings.layout, part.facet
    places = [p for p in findings.places if p.facet == facet and findings.standing(metric, p).best is not None]
    if not places or len(layout.settings) < 2:
        return []
    many = len(layout.settings) > MANY
    order = list(findings.standing(metric, places[-1]).estimates) if many else []
    panels = [_panel(findings, metric, place, order) for place in places]
    caption = f"{part.title}{metric.label}, ranked. "
    caption += f"In the order of {layout.at(places[-1].point)}. " if many and layout.across else ""
    if len(layout.seeds) > 1:
        caption += "Bars: 95 % interval of the mean over seeds (Student's t), cut off where it leaves the panel. "
        caption += "Filled: cannot be told from the best; hollow: worse than it, or not to be judged."
    else:
        caption += "One seed: no interval, and no verdict."
    name = file_name(f"ranking-{metric.column}") + part.suffix
    alt = f"{part.title}{metric.label}, ranked. " + " ".join(_words(findings, metric, place) for place in places)
    return [Picture(name, told(alt), told(caption), partial(draw, panels, shared=many))]


def _panel(findings: Findings, metric: Metric, place: Place, order: Sequence[str]) -> Panel:
    """Best first; with an ``order``, settings in that one, and all of them."""
    layout, standing = findings.layout, findings.standing(metric, place)
    dots = []
    for name, e in standing.estimates.items():
        low, high = e.interval or (math.nan, math.nan)
        dots.append(Dot(name, e.mean, low, high, filled=standing.decided and name in standing.group))
    for name in layout.settings:
        if name not in standing.estimates:
            cells = layout.select(place.facet, place.point, name)
            if cells or order:
                dots.append(Dot(name, math.nan, note=_missing(metric, cells)))
    if order:
        places = {name: number for number, name in enumerate([*order, *(n for n in layout.settings if n not in order)])}
        dots.sort(key=lambda dot: places[dot.name])
    model = layout.model(place.facet)
    dense = metric.dense.get(model) if model else None
    values = [dot.value for dot in dots if math.isfinite(dot.value)]
    # The dense model is a far line that squeezes everything else, unless it is near.
    near = dense is not None and (0.75 * min(values) < dense < 1.33 * max(values))
    return Panel(layout.at(place.point), metric.label, dots, metric.ratio, not metric.ratio, dense if near else None)


def _missing(metric: Metric, cells: Sequence[CellRecord]) -> str:
    """Why there is no number."""
    failed = [cell.error for cell in cells if cell.status == "failed"]
    if failed:
        return f"failed: {failed[0].partition(':')[0]}"
    return "not finite" if any(math.isinf(metric.value(cell)) for cell in cells) else "not measured"


def _words(findings: Findings, metric: Metric, place: Place) -> str:
    standing = findings.standing(metric, place)
    first = list(standing.estimates.items())[:3]
    told_values = join([f"{name} {metric.show(e.mean)}" for name, e in first])
    where = findings.layout.at(place.point)
    return f"{told(where) + ': ' if where else ''}{told_values} lead."
