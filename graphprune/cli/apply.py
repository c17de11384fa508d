"""``graphprune apply``: a plan made earlier, applied to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, working
from graphprune.cli.options import DType, Model, Out, Precision, Task, Trust


def command(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json, as prune writes it.")],
    folder: Out,
    dtype: Precision = DType.AUTO,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Remove from MODEL exactly what PLAN names and write the smaller model to a new folder."""
    from graphprune.checkpoint import check_output_folder, load_model, prove_folder, save
    from graphprune.cli.models import told
    from graphprune.declare import trace_with
    from graphprune.plan import PrunePlan
    from graphprune.reshape import reshape

    wanted = PrunePlan.load(plan)
    check_output_folder(folder)
    with working(f"loading {model}"):
        loaded, tokenizer = load_model(model, dtype=dtype.value, task=task, trust_remote_code=trust_remote_code)
    graph = trace_with(loaded, wanted.declared, source=str(plan))
    wanted.check(graph)
    before = loaded.num_parameters()
    with working(f"writing {folder}"):
        small = reshape(loaded, wanted, graph)
        save(small, folder, tokenizer=tokenizer, proof=lambda written: prove_folder(small, written))
    out().print(f"{wanted}: {before:,} -> {loaded.num_parameters():,} parameters")
    for line in told(folder):
        out().print(line)
