"""The files that ``graphprune trace`` writes: one option each, refused before anything is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.console import out, write_text
from graphprune.errors import CheckpointError

if TYPE_CHECKING:
    from graphprune.graph import DependencyGraph

Json = Annotated[Path | None, typer.Option("--json", help="Also write the whole graph to this file.")]
GraphML = Annotated[Path | None, typer.Option("--graphml", help="Also write nodes and edges, for graph programs.")]
Dot = Annotated[Path | None, typer.Option("--dot", help="Also write a diagram for Graphviz.")]
Html = Annotated[Path | None, typer.Option("--html", help="Also write a page to explore in a browser.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files.")]


def check_files(files: Mapping[str, Path | None], *, overwrite: bool) -> None:
    """Refuses names that cannot be written, all at once.

    Args:
        files: by the name of their option.
        overwrite: whether they may exist.

    Raises:
        CheckpointError: listing files that exist, have no folder, or are named twice.
    """
    problems, seen = [], dict[Path, str]()
    for option, file in files.items():
        if file is None:
            continue
        same = seen.setdefault(file.absolute(), option)
        if same != option:
            problems.append(f"--{same} and --{option} both name {file}. Choose another name for one of them.")
        elif file.is_dir():
            problems.append(f"--{option}: expected a file, got the folder {file}.")
        elif file.exists() and not overwrite:
            problems.append(f"{file} exists already. Choose another name, or pass --force to overwrite it.")
        elif not file.absolute().parent.is_dir():
            problems.append(f"--{option}: there is no folder {file.parent}. Make it first.")
    if problems:
        raise CheckpointError("\n".join(problems))


def write_files(graph: DependencyGraph, files: Mapping[str, Path | None], *, title: str, overwrite: bool) -> None:
    """Writes the graph to each file that was asked for, and says so."""
    from graphprune.graph_file import text_of
    from graphprune.views import dot, graphml, html

    texts: dict[str, Callable[[], str]] = {
        "json": lambda: text_of(graph),
        "graphml": lambda: graphml(graph),
        "dot": lambda: dot(graph),
        "html": lambda: html(graph, title),
    }
    for option, file in files.items():
        if file is not None:
            write_text(file, texts[option](), overwrite=overwrite)
            out().print(f"wrote {file}")
