"""``graphprune trace``: what a model has to prune."""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune.cli.console import out, working
from graphprune.cli.graph_files import Dot, Force, GraphML, Html, Json, check_files, write_files
from graphprune.cli.options import Structure, Task, Trust


def command(
    model: Structure,
    spec: Annotated[
        str | None, typer.Option("--spec", help="Add the groups that this spec declares by hand.", metavar="SPEC")
    ] = None,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Also prune every kind at random and compare; needs the memory for weights."),
    ] = False,
    json: Json = None,
    graphml: GraphML = None,
    dot: Dot = None,
    html: Html = None,
    force: Force = False,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Show what MODEL has to prune: roles, sizes, and what must not be pruned and why. Needs no weights.

    Exits with 1 if a proof was asked for and something is disproved.
    """
    files = {"json": json, "graphml": graphml, "dot": dot, "html": html}
    check_files(files, overwrite=force)
    from graphprune.cli.models import graph_of
    from graphprune.cli.proofs import proved
    from graphprune.cli.summary import print_summary

    with working(f"tracing {model}"):
        graph = graph_of(model, spec=spec, task=task, trust_remote_code=trust_remote_code)
    print_summary(graph, out())
    write_files(graph, files, title=model, overwrite=force)
    if prove and not proved(model, graph, task=task, trust_remote_code=trust_remote_code):
        raise typer.Exit(1)
