"""Where settings see importance, and where they leave units: heat maps over layers."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from graphprune.study.findings import Findings
from graphprune.study.layout import Facet
from graphprune.study.masks import kind, kinds
from graphprune.study.records import CellRecord
from graphprune.study.report import heat
from graphprune.study.report.facets import Part, per_facet
from graphprune.study.report.figures import Picture
from graphprune.study.report.section import Block, Section
from graphprune.study.report.similarity import NAMES
from graphprune.study.report.words import join, told
from graphprune.study.statistics import Floats


def section(findings: Findings) -> Section | None:
    """None where neither scores nor plans with layers are kept."""
    blocks = per_facet(findings.layout, lambda part: _part(findings, part))
    return Section("units", "Where is importance, and what stays?", blocks) if blocks else None


def _part(findings: Findings, part: Part) -> list[Block]:
    blocks: list[Block] = []
    importance = _importance(findings, part.facet)
    if importance:
        blocks.append(_importance_picture(importance, part.suffix, part.title))
    kept = _kept(findings, part.facet)
    if kept and all(_flat(heat_map.values) for heat_map in kept):
        blocks.append(told(f"{part.title}every layer keeps the same share of its units: each was ranked by itself."))
    elif kept:
        blocks.append(_kept_picture(kept, part.suffix, part.title, len(findings.layout.points)))
    return blocks


def _importance_picture(heats: list[heat.Heat], suffix: str, title: str) -> Picture:
    caption = (
        f"{title}importance by layer: the mean score of a layer's units, every row divided by its largest value, "
        "because scores of different criteria have no common unit; mean over seeds."
    )
    peaks = [f"{h.title}: {join([f'{n} in layer {p}' for n, p in _peaks(h)[:6]])}" for h in heats]
    return Picture(
        f"importance{suffix}",
        f"{title}Importance by layer. The most important layer in {'; in '.join(peaks)}.",
        told(caption),
        lambda canvas: heat.draw(heats, canvas, low=0.0, high=1.0, scale="share of the largest layer's score"),
    )


def _peaks(heats: heat.Heat) -> list[tuple[str, str]]:
    return [
        (name, heats.columns[int(np.nanargmax(row))])
        for name, row in zip(heats.rows, heats.values, strict=True)
        if np.isfinite(row).any()
    ]


def _kept_picture(heats: list[heat.Heat], suffix: str, title: str, points: int) -> Picture:
    lowest = min(float(np.nanmin(h.values)) for h in heats)
    parts = [
        f"{h.title}: {100 * np.nanmin(h.values):.0f} to {100 * np.nanmax(h.values):.0f} % of a layer" for h in heats
    ]
    return Picture(
        f"kept{suffix}",
        f"{title}Share of units that stay, by layer. {'; '.join(parts)}.",
        told(f"{title}share of the units that stay, by layer; mean over seeds."),
        lambda canvas: heat.draw(
            heats,
            canvas,
            low=min(0.5, lowest),
            high=1.0,
            scale="share of units kept",
            beside=points if points > 1 else len(heats),
        ),
    )


def _flat(values: Floats) -> bool:
    """Whether no row says anything about layers: groups of one unit more or less round differently."""
    spans = [np.ptp(row[np.isfinite(row)]) for row in values if np.isfinite(row).any()]
    return all(span < 1e-9 for span in spans)


def _layers(cells: list[CellRecord], of: str) -> list[int]:
    groups = (group for cell in cells for group in cell.groups.values() if kind(group.role) == of)
    return sorted({group.layer for group in groups if group.layer is not None})


def _importance(findings: Findings, facet: Facet) -> list[heat.Heat]:
    """Per kind of groups; of every setting at the last point where it has scores."""
    layout = findings.layout
    cells = layout.select(facet)
    chosen = {name: _scored(findings, facet, name) for name in layout.settings}
    files = {cell.scores: cell for group in chosen.values() for cell in group}
    scores = {file: findings.results.scores(cell) for file, cell in files.items()}
    heats = []
    for of in dict.fromkeys(kind(g.role) for cell in cells for g in cell.groups.values() if g.layer is not None):
        layers = _layers(cells, of)
        rows, names = [], []
        for name, group in chosen.items():
            per_seed = [_profile(cell, scores[cell.scores], of, layers) for cell in group]
            if per_seed and np.isfinite(per_seed).any():
                rows.append(np.mean(per_seed, axis=0))
                names.append(name)
        if rows and len(layers) > 1:
            heats.append(heat.Heat(told(NAMES.get(of, of)), names, [str(k) for k in layers], np.array(rows), "layer"))
    return heats


def _scored(findings: Findings, facet: Facet, setting: str) -> list[CellRecord]:
    for point in reversed(findings.layout.points):
        cells = [c for c in findings.layout.select(facet, point, setting) if c.scores and c.status == "done"]
        if cells:
            return cells
    return []


def _profile(cell: CellRecord, scores: dict[str, Tensor], of: str, layers: list[int]) -> Floats:
    """The mean score of every layer, divided by the largest; shape (layers,)."""
    sums = dict.fromkeys(layers, (0.0, 0))
    for name, group in cell.groups.items():
        if name in scores and kind(group.role) == of and group.layer in sums:
            total, count = sums[group.layer]
            sums[group.layer] = (total + float(scores[name].double().sum()), count + group.size)
    means = np.array([total / count if count else np.nan for total, count in sums.values()])
    largest = np.nanmax(np.abs(means)) if np.isfinite(means).any() else np.nan
    profile: Floats = means / largest if largest else means
    return profile


def _kept(findings: Findings, facet: Facet) -> list[heat.Heat]:
    layout, heats = findings.layout, []
    for of in kinds(layout.select(facet)):
        layers = _layers(layout.select(facet), of)
        for point in layout.points:
            rows = np.full((len(layout.settings), len(layers)), np.nan)
            for number, name in enumerate(layout.settings):
                cells = [c for c in layout.select(facet, point, name) if c.groups and c.status == "done"]
                if cells:
                    rows[number] = np.mean([_shares(cell, of, layers) for cell in cells], axis=0)
            if np.isfinite(rows).any() and len(layers) > 1:
                title = ", ".join(part for part in (NAMES.get(of, of), layout.at(point)) if part)
                heats.append(heat.Heat(title, layout.settings, [str(k) for k in layers], rows, "layer"))
    return heats


def _shares(cell: CellRecord, of: str, layers: list[int]) -> Floats:
    """Of the units of every layer, the part that stays; shape (layers,)."""
    sums = dict.fromkeys(layers, (0, 0))
    for group in cell.groups.values():
        if kind(group.role) == of and group.layer in sums:
            gone, size = sums[group.layer]
            sums[group.layer] = (gone + len(group.removed), size + group.size)
    return np.array([1 - gone / size if size else np.nan for gone, size in sums.values()])
