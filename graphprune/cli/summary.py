"""A graph in the terminal: roles by fate in a table, and below it why some must stay."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from graphprune.inventory import RoleRow, inventory, layers_text, plural, unit_weights
from graphprune.views.fold import LAYER, Fold, fold_of

if TYPE_CHECKING:
    from graphprune.graph import DependencyGraph

_FEW = 10
_STYLES = {"exact": "green", "inexact": "yellow", "frozen": "dim"}


def print_summary(graph: DependencyGraph, console: Console) -> None:
    """Prints the table and its notes; in a terminal, notes are wrapped under their number."""
    fold = fold_of(graph)
    console.print(f"{plural(len(graph.groups), 'group')} in {plural(graph.layers, 'layer')}")
    console.print(_table(graph, fold))
    for line in _notes(graph, fold):
        if console.is_terminal:
            line = textwrap.fill(line, console.width, subsequent_indent=" " * 4, break_on_hyphens=False)
        console.print(line)


def _table(graph: DependencyGraph, fold: Fold) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("role", no_wrap=True)
    for name in ("groups", "units", "weights/unit"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("layers", overflow="fold")
    table.add_column("removal", no_wrap=True)
    prunable = True
    for number, row in _numbered(graph, fold):
        if row.frozen and prunable and table.row_count:
            table.add_section()
        prunable = row.frozen is None
        fate = _fate(row) + (f" [{number}]" if number else "")
        cells = (row.role, str(row.count), row.sizes, _weights(graph, row), _layers(row, fold), fate)
        table.add_row(*cells, style=_STYLES[_fate(row)])
    return table


def _rows(graph: DependencyGraph, fold: Fold) -> list[RoleRow]:
    """The inventory, with rows whose reasons name nothing but another layer taken together."""
    merged: dict[tuple[str | None, ...], list[RoleRow]] = {}
    for row in inventory(graph):
        key = (row.role, *(None if text is None else fold.split(text)[0] for text in (row.frozen, row.inexact)))
        merged.setdefault(key, []).append(row)
    return [
        RoleRow(str(role), tuple(g for row in rows for g in row.groups), frozen, inexact)
        for (role, frozen, inexact), rows in merged.items()
    ]


def _numbered(graph: DependencyGraph, fold: Fold) -> Iterator[tuple[int, RoleRow]]:
    """Rows with the number of their note; 0 without one. Rows with the same reason share a note."""
    notes: dict[tuple[str | None, str | None], int] = {}
    for row in _rows(graph, fold):
        reason = (row.frozen, row.inexact)
        number = notes.setdefault(reason, len(notes) + 1) if any(reason) else 0
        yield number, row


def _notes(graph: DependencyGraph, fold: Fold) -> Iterator[str]:
    """Why groups are inexact or frozen, what the tracer could not follow, and parameters it never met."""
    told: set[int] = set()
    for number, row in _numbered(graph, fold):
        if number and number not in told:
            told.add(number)
            yield _everywhere(f"[{number}] {_fate(row)}: {row.frozen or row.inexact}")
    yield from _stuck(graph)
    for note in fold.values(graph.notes):
        where = f" ({layers_text(note['layers'])})" if note["layers"] else ""
        yield _everywhere(f"note: {note['value']}{where}")
    if graph.untraced:
        shown = ", ".join(graph.untraced[:_FEW]) + (", ..." if len(graph.untraced) > _FEW else "")
        yield f"note: {plural(len(graph.untraced), 'parameter')} never used by the traced forward: {shown}"


def _stuck(graph: DependencyGraph) -> Iterator[str]:
    """Groups that may be pruned but have no unit to spare."""
    layers: dict[tuple[str, int], list[int | None]] = {}
    for g in graph.groups:
        if g.frozen is None and g.minimum >= g.size:
            layers.setdefault((g.role, g.size), []).append(g.layer)
    for (role, size), where in layers.items():
        units = f"all {size} units" if size > 1 else "the only unit"
        yield f"note: {role} ({layers_text(where)}): {units} must stay, so none can go"


def _everywhere(text: str) -> str:
    return text.replace(LAYER, "*")


def _fate(row: RoleRow) -> str:
    return "frozen" if row.frozen else "inexact" if row.inexact else "exact"


def _weights(graph: DependencyGraph, row: RoleRow) -> str:
    found = [unit_weights(graph, g) for g in row.groups]
    low, high = short(min(found)), short(max(found))
    return low if low == high else f"{low} to {high}"


def _layers(row: RoleRow, fold: Fold) -> str:
    """The layers that have such a group; of groups that belong to no single layer, those that they run through."""
    if any(g.layer is not None for g in row.groups):
        return row.where.removeprefix("layers ").removeprefix("layer ")
    through = {fold.split(m.tensor)[1] for g in row.groups for m in g.members} - {None}
    return f"across {layers_text(through).split(' ', 1)[1]}" if through else "outside"


def short(number: float) -> str:
    """A count to three digits: ``512``, ``24.6K``, ``1.05M``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{number:.0f}"
