"""What pruning itself costs by setting: time and memory, in the layout of LoRAPrune's Table 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from graphprune.report.stages import Stage
from graphprune.study.findings import Findings
from graphprune.study.layout import Place
from graphprune.study.records import CellRecord
from graphprune.study.report import words
from graphprune.study.report.dots import Dot, Panel, draw
from graphprune.study.report.facets import Part, per_facet
from graphprune.study.report.figures import Picture
from graphprune.study.report.section import Block, Cell, Section, Table
from graphprune.study.report.words import told
from graphprune.study.statistics import mean

#: Stages that belong to pruning itself; the largest memory is looked for in these.
_PRUNING = frozenset({"score", "quantise", "train", "reshape", "merge"})


@dataclass(frozen=True)
class Resource:
    """A column of the table."""

    name: str
    of: Callable[[CellRecord], float]
    show: Callable[[float], str]


def section(findings: Findings) -> Section | None:
    """None where no run says what it took."""
    layout = findings.layout
    resources = [r for r in _resources(findings) if any(math.isfinite(r.of(cell)) for cell in layout.cells)]
    if not resources:
        return None
    text = (
        "In the layout of LoRAPrune's Table 4 (arXiv 2305.18403); in brackets the change against "
        f"{layout.settings[0]}. Means over seeds. The total is scoring, training and cutting, not evaluation; scores "
        "that several runs share are counted for each of them. Times are of this machine, with whatever else it did."
    )

    def part(of: Part) -> list[Block]:
        places = [place for place in findings.places if place.facet == of.facet]
        tables = [_table(findings, place, resources, hidden=place != places[-1]) for place in reversed(places)]
        return [_picture(findings, places[-1], resources, of.suffix), *tables]

    return Section("resources", "What does pruning take?", [text, *per_facet(layout, part)])


def _resources(findings: Findings) -> tuple[Resource, ...]:
    shared: dict[str, float] = {}
    for cell in findings.layout.cells:
        if cell.scores:
            shared[cell.scores] = max(shared.get(cell.scores, 0.0), _stage(cell, "score"))

    def score(cell: CellRecord) -> float:
        seconds = max(_stage(cell, "score"), shared.get(cell.scores, 0.0))
        return seconds if seconds and cell.status == "done" else math.nan

    def total(cell: CellRecord) -> float:
        stages = cell.report.stages if cell.report is not None else ()
        rest = [stage.seconds for stage in stages if stage.name in _PRUNING and stage.name != "score"]
        scoring = score(cell)
        return sum(rest) + (scoring if math.isfinite(scoring) else 0.0) if rest else math.nan

    return (
        Resource("time per step", _per_step, words.seconds),
        Resource("scoring", score, words.seconds),
        Resource("device memory", lambda cell: _peak(cell, lambda s: s.peak_device_bytes), words.size),
        Resource("process memory", lambda cell: _peak(cell, lambda s: s.peak_rss_bytes), words.size),
        Resource("total time", total, words.seconds),
    )


def _stage(cell: CellRecord, name: str) -> float:
    stages = cell.report.stages if cell.report is not None else ()
    return sum(stage.seconds for stage in stages if stage.name == name)


def _per_step(cell: CellRecord) -> float:
    """Seconds of training by optimizer step."""
    seconds = _stage(cell, "train")
    steps = cell.spec.get("training", {}).get("steps")
    if cell.report is not None and not steps:
        steps = cell.report.spec.get("training", {}).get("steps")
    return seconds / steps if seconds and steps else math.nan


def _peak(cell: CellRecord, read: Callable[[Stage], int | None]) -> float:
    stages = cell.report.stages if cell.report is not None else ()
    pruning = [stage for stage in stages if stage.name in _PRUNING] or stages
    return max((float(v) for stage in pruning if (v := read(stage))), default=math.nan)


def _means(findings: Findings, place: Place, resource: Resource) -> dict[str, list[float]]:
    """Of every setting the values of its seeds."""
    layout = findings.layout
    return {
        name: [v for cell in layout.select(place.facet, place.point, name) if math.isfinite(v := resource.of(cell))]
        for name in layout.settings
    }


def _picture(findings: Findings, place: Place, resources: Sequence[Resource], suffix: str) -> Picture:
    layout = findings.layout
    panels, parts = [], []
    for resource in resources:
        values = _means(findings, place, resource)
        known = {name: found for name, found in values.items() if found}
        if not known:
            continue
        dots = [
            Dot(name, mean(found), min(found), max(found)) if found else Dot(name, math.nan, note="–")
            for name, found in values.items()
            if layout.select(place.facet, place.point, name)
        ]
        panels.append(Panel(resource.name, "", dots, show=resource.show))
        least, most = min(known, key=lambda n: mean(known[n])), max(known, key=lambda n: mean(known[n]))
        ends = f"{resource.show(mean(known[least]))} ({least}) to {resource.show(mean(known[most]))} ({most})"
        parts.append(f"{told(resource.name)}: {ends}.")
    where = layout.where(place)
    return Picture(
        f"resources{suffix}",
        f"Time and memory of pruning{f', {where}' if where else ''}. {' '.join(parts)}",
        f"Time and memory{f' ({where})' if where else ''}. Bars: smallest to largest over the seeds.",
        partial(draw, panels, shared=True),
    )


def _table(findings: Findings, place: Place, resources: Sequence[Resource], *, hidden: bool) -> Table:
    layout = findings.layout
    metrics = findings.metrics[:1]
    first = layout.settings[0]
    resources = [resource for resource in resources if any(_means(findings, place, resource).values())]
    head = [layout.series, *(resource.name for resource in resources), *(metric.label for metric in metrics)]
    columns = [(_means(findings, place, resource), resource.show, True) for resource in resources]
    for metric in metrics:
        found = findings.standing(metric, place).estimates
        columns.append(({name: [e.mean] for name, e in found.items()}, metric.show, metric.ratio))
    rows: list[list[Cell | str]] = []
    for name in layout.settings:
        if not layout.select(place.facet, place.point, name):
            continue
        row: list[Cell | str] = [name]
        for values, show, relative in columns:
            value, base = mean(values.get(name, [])), mean(values.get(first, []))
            text = show(value)
            if relative and name != first and math.isfinite(value) and math.isfinite(base) and base > 0:
                text += f" ({words.change(value / base)})"
            row.append(Cell(text, value))
        rows.append(row)
    where = layout.where(place)
    return Table(head, rows, f"Resources{f', {where}' if where else ''}", hidden=hidden)
