"""The numbers behind the sentences: means, intervals, and every comparison."""

from __future__ import annotations

import math

from graphprune.study.findings import Findings
from graphprune.study.metrics import Metric
from graphprune.study.report.section import Cell, Table
from graphprune.study.report.words import effect_words, interval_words, told
from graphprune.study.verdicts import Comparison


def table(findings: Findings, metric: Metric) -> Table:
    """A row per place and setting, against the best there, and against the first setting of the study."""
    layout = findings.layout
    axes = [axis for axis in layout.rest if len(layout.labels[axis]) > 1]
    across = [layout.across] if layout.across else []
    value = [layout.series, metric.label, "95 % interval", "seeds"]
    first = layout.settings[0]
    head = [
        *axes,
        *across,
        *value,
        "against the best",
        "p (Holm)",
        "verdict",
        f"against {first}",
        "p (Holm)",
        "verdict",
    ]
    rows: list[list[Cell | str]] = []
    for place in findings.places:
        standing, by_first = findings.standing(metric, place), findings.against_first(metric, place)
        facet = [label for axis, label in zip(layout.rest, place.facet, strict=True) if axis in axes]
        point = [Cell(place.point, layout.positions[layout.points.index(place.point)])] if across else []
        for name, e in standing.estimates.items():
            known = [
                Cell(metric.show(e.mean), e.mean),
                Cell(interval_words(metric, e.interval), e.interval.low if e.interval else math.nan),
                Cell(str(e.seeds), e.seeds),
            ]
            best = _compared(metric, standing.comparisons.get(name), "best" if standing.decided else "no verdict")
            rows.append([*facet, *point, name, *known, *best, *_compared(metric, by_first.get(name), "–")])
    return Table(head, rows, f"{told(metric.label)}: means, intervals and verdicts", hidden=True, filtered=True)


def _compared(metric: Metric, found: Comparison | None, itself: str) -> list[Cell]:
    """Effect with Student's interval, corrected p-value, verdict."""
    if found is None:
        return [Cell("–", math.nan), Cell("–", math.nan), Cell(itself)]
    effect = effect_words(metric, found.effect)
    if found.student is not None:
        effect += f" ({effect_words(metric, found.student.low)} to {effect_words(metric, found.student.high)})"
    p = "–" if math.isnan(found.p_holm) else f"{found.p_holm:.2g}"
    verdict = "no verdict" if found.verdict == "none" else found.verdict
    return [Cell(effect, found.effect), Cell(p, found.p_holm), Cell(verdict)]
