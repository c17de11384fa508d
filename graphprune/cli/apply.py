"""``graphprune apply``: a plan made earlier, applied to a checkpoint on the way from one folder to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from graphprune.cli.console import errors, out
from graphprune.cli.options import DType, Model, Out, Precision, Task, Trust


def command(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json, as prune writes it.")],
    folder: Out,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="The folder of a PEFT LoRA adapter to merge before cutting.")
    ] = None,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Load MODEL, cut it in memory, and compare what a fresh process loads with it."),
    ] = False,
    dtype: Precision = DType.AUTO,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Remove from MODEL exactly what PLAN names and write the smaller model to a new folder, without loading it."""
    from graphprune.cli.models import told
    from graphprune.plan import PrunePlan
    from graphprune.stream.apply import apply

    wanted = PrunePlan.load(plan)
    with _bar(f"writing {folder}") as progress:
        done = apply(
            model,
            wanted,
            folder,
            adapter=adapter,
            dtype=dtype.value,
            task=task,
            trust_remote_code=trust_remote_code,
            prove=prove,
            progress=progress,
        )
    out().print(f"{wanted}: {done.before:,} -> {done.after:,} parameters")
    if prove:
        out().print("a fresh process loads the folder; logits and greedy tokens are those of the model cut in memory")
    for line in told(folder):
        out().print(line)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, once there is progress; a single line where that is no terminal."""
    console = errors()
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)

        def told(done: int, total: int) -> None:
            if not console.is_terminal and not progress.tasks[bar].total:
                console.print(what)
            progress.update(bar, completed=done, total=total)

        yield told
