"""``graphprune compare``: a study, from one file to a folder of results and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune.cli.console import out, working
from graphprune.cli.options import Device, DType, Precision, Trust


def command(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A YAML file, or 'study:NAME'.")],
    folder: Annotated[
        Path, typer.Option("--out", help="The folder for the results; one that has some of them already goes on.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Hub id or local folder, or LABEL=NAME; may be repeated; overrides the study's."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to train and calibrate on, .txt or .jsonl; overrides the study.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="Text whose perplexity is told; overrides the study.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="How many, or which: 3, or 0,1,2; overrides the study.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps of every cell.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="PATH=VALUE in the study or its spec, such as lora.r=4; may be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="The key of a cell to run, no others; may be repeated.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run cells again that have failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be run, and run nothing.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="The results alone, no tables and pages.")] = False,
    dtype: Precision = DType.AUTO,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Run every cell of STUDY that its folder does not have yet, and report on all of them."""
    from graphprune.cli.comparison import print_comparison, print_grid
    from graphprune.cli.models import check_file, device_of
    from graphprune.study import report
    from graphprune.study.run import Work, run_study
    from graphprune.study.shares import Shares
    from graphprune.study.studyfile import read_study

    shares = Shares.meet()  # before anything is on a device
    if not (no_report or dry_run):
        _check_report()
    for given in (text, evaluation):
        if given is not None:
            check_file(given)
    with working(f"reading {study}"):
        file = read_study(study, _changes(model, seeds, steps, change))
        work = Work.of(
            file,
            folder,
            data=text,
            evaluation=evaluation,
            dtype=dtype.value,
            device=None if device is None else device_of(device),
            trust_remote_code=trust_remote_code,
        )
    todo = work.pending(only=tuple(only or ()), retry=retry)
    for note in work.notes:
        out().print(f"note: {note}")
    if dry_run:
        print_grid(work, todo, out())
        return
    results = run_study(work, todo, shares)
    if not shares.is_main:
        return
    print_comparison(results, out())
    if not no_report:
        with working("writing the report"):
            report.write_report(results, results.folder)
    out().print(f"wrote {results.folder}")


def _changes(
    models: list[str] | None,
    seeds: str | None,
    steps: int | None,
    given: list[str] | None,
) -> dict[str, Any]:
    """What the options say, as values by path."""
    changes: dict[str, Any] = {}
    if models:
        changes["models"] = models
    if seeds is not None:
        changes["seeds"] = _seeds(seeds)
    if steps is not None:
        changes["training.steps"] = steps
    for item in given or ():
        path, value = _pair(item)
        changes[path] = value
    return changes


def _seeds(given: str) -> int | list[int]:
    from graphprune.errors import SpecError

    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        raise SpecError(f"expected a number of seeds (3) or seeds (0,1,2), got '{given}'", "--seeds") from None
    return numbers if "," in given else numbers[0]


def _pair(item: str) -> tuple[str, Any]:
    from graphprune.errors import SpecError
    from graphprune.yaml_lines import read_yaml

    path, equals, value = item.partition("=")
    found, _, problems = read_yaml(value)
    if not path or not equals or problems:
        raise SpecError(f"expected PATH=VALUE, such as lora.r=4, got '{item}'", "--set")
    return path, found


def _check_report() -> None:
    """What the report needs is looked for before hours are spent on what it is about."""
    from graphprune.errors import GraphPruneError, MissingExtraError
    from graphprune.study.report import check_installed

    try:
        check_installed()
    except MissingExtraError as error:
        raise GraphPruneError(f"{error}, or pass --no-report to have the results alone") from None
