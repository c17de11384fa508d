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
        bool | None,
        typer.Option(
            "--prove/--no-prove",
            help="Compare logits and text of what a fresh process loads with MODEL cut in memory; or prove nothing. By "
            "default compare them where memory allows, else names and shapes.",
            show_default=False,
        ),
    ] = None,
    dtype: Precision = DType.AUTO,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Remove from MODEL exactly what PLAN names and write the smaller model to a new folder, without loading it."""
    from graphprune.cli.models import told
    from graphprune.plan import PrunePlan
    from graphprune.stream.apply import apply

    wanted = PrunePlan.load(plan)
    then = "" if prove is False else f"proving {folder}"
    with _bar(f"writing {folder}", then) as progress:
        done = apply(
            model,
            wanted,
            folder,
            adapter=adapter,
            dtype=dtype.value,
            task=task,
            trust_remote_code=trust_remote_code,
            prove="auto" if prove is None else prove,
            progress=progress,
        )
    out().print(f"{wanted}: {done.before:,} -> {done.after:,} parameters")
    out().print(done.proof)
    for line in told(folder):
        out().print(line)


@contextmanager
def _bar(what: str, then: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, once there is progress; a line for each where that is no terminal."""
    console = errors()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def told(done: int, total: int) -> None:
            if not console.is_terminal and not progress.tasks[bar].total:
                console.print(what)
            progress.update(bar, completed=done, total=total)
            if done == total and then:
                progress.update(bar, description=then)
                if not console.is_terminal:
                    console.print(then)

        yield told
