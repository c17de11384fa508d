"""``graphprune init``: a commented spec for a model, to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, working, write_text
from graphprune.cli.options import Structure, Task, Trust


def command(
    model: Structure,
    file: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write a commented spec for MODEL: what it has to prune, and every setting with its default."""
    from graphprune.cli.models import structure
    from graphprune.engine.prepare import positions
    from graphprune.starter import starter_spec
    from graphprune.tasks import predicts_next_token
    from graphprune.trace import trace

    with working(f"tracing {model}"):
        empty = structure(model, task=task, trust_remote_code=trust_remote_code)
        trains = predicts_next_token(empty)
        text = starter_spec(trace(empty), model, positions(empty), trains=trains)
    if file is None:
        out().print(text, end="")
    else:
        write_text(file, text, overwrite=force)
        data = " --data calibration.txt" if trains else ""
        out().print(f"wrote {file}; next: graphprune prune {model} {file}{data} --out FOLDER")
