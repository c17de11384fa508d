"""``graphprune init``: a commented spec for a model, to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, working, write_text
from graphprune.cli.options import Model, Trust


def command(
    model: Model,
    file: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write a commented spec for MODEL: what it has to prune, and every setting with its default."""
    from graphprune.cli.models import structure
    from graphprune.engine.prepare import positions
    from graphprune.starter import starter_spec
    from graphprune.trace import trace

    with working(f"tracing {model}"):
        empty = structure(model, trust_remote_code=trust_remote_code)
        text = starter_spec(trace(empty), model, positions(empty))
    if file is None:
        out().print(text, end="")
    else:
        write_text(file, text, overwrite=force)
        out().print(f"wrote {file}; next: graphprune prune {model} {file} --data calibration.txt --out FOLDER")
