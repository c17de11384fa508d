"""``graphprune quickstart``: the whole way once, on the bundled demo decoder, without a download."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.console import out, working

if TYPE_CHECKING:
    from rich.table import Table

    from graphprune.report import Measures, Report


def command(
    chosen: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder to write; must not exist, or be empty. By default quickstart, or quickstart-2, …"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps; fewer is faster.")] = None,
) -> None:
    """Prune the bundled demo decoder to half of its heads and channels while tuning it, in a minute or two."""
    from graphprune import demo
    from graphprune.checkpoint import check_output_folder, load_model
    from graphprune.cli.models import device_of, told
    from graphprune.engine.run import prune
    from graphprune.forecast import preview
    from graphprune.specfile import load_spec
    from graphprune.trace import trace

    spec = load_spec("recipe:quickstart")
    changes = {"save_every": 0, **({} if steps is None else {"steps": steps})}  # too short to be resumed
    spec = spec.model_copy(update={"training": spec.training.model_copy(update=changes)})
    folder = check_output_folder(chosen if chosen is not None else _unused(Path("quickstart")))
    with working("loading the demo decoder"):
        model, tokenizer = load_model(demo.model_path(), device=device_of(None))
    graph = trace(model)
    out().print(f"{graph}\nrecipe:quickstart asks for")
    for line in preview(spec, graph):
        out().print(f"  {line}")
    with _one_thread():
        result = prune(
            model,
            spec,
            tokenizer=tokenizer,
            train_data=demo.calibration_path(),
            evaluation=demo.held_out_path(),
            output=folder,
            graph=graph,
        )
    out().print(_table(result.report))
    for line in told(folder):
        out().print(line)


def _unused(folder: Path) -> Path:
    """``folder``, or the same with the first number that is free: trying twice must work, and overwrite nothing."""
    numbered = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    return next(f for f in itertools.chain([folder], numbered) if not f.exists())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain little from a second thread, and lose much where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(report: Report) -> Table:
    """Before and after, in the numbers that people ask for."""
    from rich.table import Table

    before, after = report.before, report.after
    costs = [
        ("million MACs per token", _macs(before), _macs(after), 1e6),
        ("KV cache, kB per token", before.cache_bytes_per_token, after.cache_bytes_per_token, 1e3),
    ]
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("weights, MB", f"{before.weight_bytes / 1e6:.1f}", f"{after.weight_bytes / 1e6:.1f}"),
        *((name, f"{old / scale:.2f}", f"{new / scale:.2f}") for name, old, new, scale in costs if old and new),
        ("perplexity, held-out text", _number(report.perplexity_before), _number(report.perplexity_tuned)),
        ("  the same units gone, not tuned", "", _number(report.perplexity_pruned)),
    ]
    table = Table()
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _macs(measures: Measures) -> float | None:
    return None if measures.macs is None else measures.macs / measures.sequence_length


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
