"""``graphprune trace``: what a model has to prune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.console import out, working, write_text
from graphprune.cli.options import Model, Trust

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.graph import DependencyGraph

_FEW = 10


def command(
    model: Model,
    spec: Annotated[
        str | None, typer.Option("--spec", help="Add the groups that this spec declares by hand.", metavar="SPEC")
    ] = None,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Also prune every kind at random and compare; needs the memory for weights."),
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the whole graph to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Show what MODEL has to prune: roles, sizes, and what must not be pruned and why. Needs no weights.

    Exits with 1 if a proof was asked for and something is disproved.
    """
    from graphprune.cli.models import graph_of
    from graphprune.cli.proofs import proved

    with working(f"tracing {model}"):
        graph = graph_of(model, spec=spec, trust_remote_code=trust_remote_code)
    out().print(_table(graph))
    for line in [*_reasons(graph), *_remarks(graph)]:
        out().print(line)
    if json is not None:
        write_text(json, graph.model_dump_json(indent=1) + "\n", overwrite=force)
        out().print(f"wrote {json}")
    if prove and not proved(model, graph, trust_remote_code=trust_remote_code):
        raise typer.Exit(1)


def _table(graph: DependencyGraph) -> Table:
    from rich.table import Table

    from graphprune.inventory import inventory, plural

    table = Table(
        title=f"{plural(len(graph.groups), 'group')} in {plural(graph.layers, 'layer')}", title_justify="left"
    )
    for name in ("role", "groups", "units each", "where", "removal"):
        table.add_column(name, overflow="fold")
    for row in inventory(graph):
        fate = "frozen" if row.frozen else "inexact" if row.inexact else "exact"
        table.add_row(row.role, str(row.count), row.sizes, row.where, fate)
    return table


def _reasons(graph: DependencyGraph) -> list[str]:
    """Why groups are inexact or frozen; too long for the table."""
    from graphprune.inventory import inventory

    lines = []
    for row in inventory(graph):
        for fate, reason in (("inexact", row.inexact), ("frozen", row.frozen)):
            if reason:
                lines.append(f"{fate}: {row.role} ({row.where}): {reason}")
    return lines


def _remarks(graph: DependencyGraph) -> list[str]:
    """What the tracer could not follow, and parameters it never met."""
    from graphprune.inventory import plural

    lines = [f"note: {note}" for note in graph.notes]
    if graph.untraced:
        shown = ", ".join(graph.untraced[:_FEW]) + (", ..." if len(graph.untraced) > _FEW else "")
        lines.append(f"note: {plural(len(graph.untraced), 'parameter')} never used by the traced forward: {shown}")
    return lines
