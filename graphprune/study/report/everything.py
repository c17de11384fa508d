"""Every cell with its numbers, what failed and why, and how to repeat each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import yaml

from graphprune.study.findings import Findings
from graphprune.study.metrics import Metric
from graphprune.study.records import CellRecord
from graphprune.study.report import words
from graphprune.study.report.section import Block, Cell, Code, Fold, Points, Section, Table
from graphprune.study.report.tradeoff import costs
from graphprune.study.report.words import count


def cells_section(findings: Findings) -> Section:
    """The table of everything."""
    layout = findings.layout
    axes = [axis for axis, labels in layout.labels.items() if len(labels) > 1 or axis == layout.series]
    metrics = findings.metrics
    head = [*axes, "seed", *(m.label for m in metrics), *(cost.name for cost in costs()), "time of the run", "key"]
    rows = [_row(findings, cell, axes, metrics) for cell in layout.cells]
    kept = [k for k in range(len(head)) if any(row[k].text not in ("", "–") for row in rows)]
    table = Table(
        [head[k] for k in kept],
        [[row[k] for k in kept] for row in rows],
        "The same, with more columns: results.csv and results.parquet.",
        filtered=True,
    )
    blocks: list[Block] = [table]
    failed = [cell for cell in layout.cells if cell.status == "failed"]
    if failed:
        reasons: list[list[Cell | str]] = [
            [_label(cell), Cell(str(cell.seed), cell.seed), cell.error] for cell in failed
        ]
        blocks.insert(0, Table(["run", "seed", "why it failed"], reasons, f"{count(len(failed), 'run')} failed."))
    return Section("runs", "All runs", blocks)


def _row(findings: Findings, cell: CellRecord, axes: Sequence[str], metrics: Sequence[Metric]) -> list[Cell]:
    layout = findings.layout
    row = [
        Cell(cell.labels.get(axis, ""), layout.numbers.get(axis, {}).get(cell.labels.get(axis, ""))) for axis in axes
    ]
    row.append(Cell(str(cell.seed), cell.seed))
    if cell.status == "failed":
        values = [Cell("failed", math.nan)] * len(metrics)
    else:
        values = [Cell(metric.show(metric.value(cell)), metric.value(cell)) for metric in metrics]
    known = [(cost.of(cell), cost.show) for cost in costs()] + [(cell.seconds, words.seconds)]
    return [*row, *values, *(Cell(show(value), value) for value, show in known), Cell(cell.key)]


def _label(cell: CellRecord) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in cell.labels.items())


def reproduce_section(findings: Findings) -> Section:
    """How to repeat the study, and each of its cells."""
    results, layout = findings.results, findings.layout
    study = yaml.safe_dump(
        results.study.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
    )
    blocks: list[Block] = [
        "The whole study, with this file; cells that are there already are not run again:",
        Code("study.yaml", study, "yaml"),
    ]
    facts = [f"{name} {value}" for name, value in (_versions(layout.cells) or results.versions or {}).items()]
    if facts:
        blocks.append(Points([f"Ran with {', '.join(facts)}.", *_machine(layout.cells)]))
    if results.study.source:
        blocks.append(f"Repeats: {results.study.source}")
    codes: list[Block] = []
    for cell in layout.cells:
        spec = yaml.safe_dump(cell.spec, sort_keys=False, allow_unicode=True)
        text = f"# {cell.command}\n{spec}" if cell.command else spec
        codes.append(Code(f"{_label(cell)}, seed {cell.seed}", text, "yaml"))
    blocks.append(
        Fold(f"One run alone: command and spec of each of the {count(len(codes), 'run')}", codes, essential=False)
    )
    return Section("reproduce", "How to repeat it", blocks)


def _versions(cells: Sequence[CellRecord]) -> dict[str, str]:
    """By library; several, where cells differ."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, version in (cell.report.versions if cell.report is not None else {}).items():
            found.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in found.items()}


def _machine(cells: Sequence[CellRecord]) -> list[str]:
    devices = dict.fromkeys(cell.evaluation.device for cell in cells if cell.evaluation is not None)
    texts = dict.fromkeys(
        cell.report.evaluation for cell in cells if cell.report is not None and cell.report.evaluation
    )
    found = [f"Measured on: {', '.join(devices)}."] if devices else []
    return found + [f"Perplexity on {text}." for text in texts]
