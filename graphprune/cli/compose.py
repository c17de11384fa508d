"""``graphprune compose``: plans that were made one after the other, as one plan for the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.console import out, working
from graphprune.cli.graph_files import Force, check_files
from graphprune.cli.options import Structure, Task, Trust

if TYPE_CHECKING:
    from graphprune.plan import PrunePlan


def command(
    model: Structure,
    plans: Annotated[
        list[Path],
        typer.Argument(metavar="PLAN...", help="Plan files or pruned folders, oldest first."),
    ],
    file: Annotated[Path, typer.Option("--out", help="The plan file to write.")],
    task: Task = None,
    trust_remote_code: Trust = False,
    force: Force = False,
) -> None:
    """Make one plan for MODEL, the original, of plans that were made one after the other."""
    check_files({"out": file}, overwrite=force)
    found = [plan for path in plans for plan in _plans(path)]
    from graphprune.cli.models import structure
    from graphprune.compose import compose

    with working(f"following {len(found)} plans through {model}"):
        whole = compose(structure(model, task=task, trust_remote_code=trust_remote_code), found)
    whole.save(file)
    out().print(f"{whole} -> {file}; carry it out with:")
    out().print(f"    graphprune apply {model} {file} --out FOLDER", soft_wrap=True)


def _plans(path: Path) -> list[PrunePlan]:
    from graphprune.checkpoint.manifest import Manifest
    from graphprune.plan import PrunePlan

    if path.is_dir():
        return [PrunePlan.load(path / step.plan) for step in Manifest.read(path).steps]
    return [PrunePlan.load(path)]
