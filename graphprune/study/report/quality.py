"""Quality: along the axis that the study follows, and ranked at every point."""

from __future__ import annotations

from graphprune.study.findings import Findings
from graphprune.study.report import curves, ranking
from graphprune.study.report.section import Block, Fold, Section

_PANELS = 6


def section(findings: Findings) -> Section | None:
    """None where no quality is known."""
    layout, blocks = findings.layout, list[Block]()
    for number, metric in enumerate(findings.metrics):
        # What matters most is drawn both ways; everything else as curves, or ranked where there are none.
        if number == 0:
            blocks += curves.pictures(findings, metric)
        if number == 0 or layout.across is None:
            blocks += ranking.blocks(findings.judging, metric)
    others = curves.others(findings, findings.metrics[1:])
    # Many small panels are for those who look for one of them.
    apart = len(layout.facets) * (len(findings.metrics) - 1) > _PANELS
    blocks += [Fold("Other measures", others)] if others and apart else others
    title = f"Quality along {layout.across}" if layout.across is not None else "Quality"
    return Section("quality", title, blocks) if blocks else None
