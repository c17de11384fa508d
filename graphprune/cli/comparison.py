"""Studies in the terminal: what is to be run, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from graphprune.study.grid import Cell
    from graphprune.study.records import CellRecord
    from graphprune.study.results import Results
    from graphprune.study.run import Work
    from graphprune.study.subject import Keys


def print_grid(work: Work, todo: Sequence[tuple[Cell, Keys]], console: Console) -> None:
    """Every cell with its key and its state, and how long the rest will take."""
    from graphprune.study.pace import duration

    console.print("key               state    cell")
    waiting = {keys.cell for _, keys in todo}
    for cell, keys in work.cells:
        record = work.folder.cell(keys.cell)
        state = "to run" if keys.cell in waiting else "absent" if record is None else record.status
        console.print(f"{keys.cell:<17} {state:<8} {cell}")
    runs = len({keys.cell for _, keys in work.cells})
    console.print(
        f"{len(work.cells)} cells, {runs} runs, {len(todo)} to run; "
        f"time: {duration(work.left([cell for cell, _ in todo]))}"
    )


def print_comparison(results: Results, console: Console) -> None:
    """The mean perplexity over seeds of every series, one table per model, one column per place on the other axis."""
    from graphprune.study.layout import Layout

    layout = Layout.of(results)
    series, across = layout.series, layout.across
    done = [cell for cell in results.cells if cell.status == "done"]
    for model in dict.fromkeys(cell.labels["model"] for cell in results.cells):
        own = [cell for cell in done if cell.labels["model"] == model]
        columns = list(dict.fromkeys(c.labels[across] for c in own)) if across else [""]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=f"{model}, perplexity")
        table.add_column(series, overflow="fold")
        for column in columns:
            table.add_column(f"{across or ''} {column}".strip(), justify="right")
        for name, cells in _rows(own, series, across).items():
            by_column = [[c for c in cells if not across or c.labels[across] == column] for column in columns]
            table.add_row(name, *(_mean([p for c in chosen if (p := final(c)) is not None]) for chosen in by_column))
        console.print(table)
    failed = [cell for cell in results.cells if cell.status == "failed"]
    for cell in failed:
        said = ", ".join([f"seed {cell.seed}", *cell.labels.values()])
        console.print(f"failed: {said}: {cell.error.splitlines()[0]} (key {cell.key})")
    if results.missing:
        console.print(f"{results.missing} cells have not been run")


def final(cell: CellRecord) -> float | None:
    """The perplexity of what comes out of a cell."""
    report = cell.report
    if report is None:
        return None
    return report.perplexity_pruned if report.perplexity_tuned is None else report.perplexity_tuned


def _rows(cells: Sequence[CellRecord], series: str, across: str | None) -> dict[str, list[CellRecord]]:
    """By the labels of all axes but the one that makes the columns, the series first."""
    rows: dict[str, list[CellRecord]] = {}
    for cell in cells:
        others = [v for k, v in cell.labels.items() if k not in ("model", series, across)]
        rows.setdefault(", ".join([cell.labels[series], *others]), []).append(cell)
    return rows


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:,.2f}"
    return f"{statistics.mean(values):,.2f} ± {statistics.stdev(values):.2f}"
