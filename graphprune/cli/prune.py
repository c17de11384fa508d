"""``graphprune prune``: the whole run, from a model and a spec to a smaller model on disk."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphprune.cli.console import out, working
from graphprune.cli.options import Device, DType, Model, Out, Precision, Spec, Task, Trust

if TYPE_CHECKING:
    from graphprune.schema import PruneSpec


def command(
    model: Model,
    spec: Spec,
    folder: Out,
    data: Annotated[
        Path | None, typer.Option("--data", help="Text to train and calibrate on, .txt or .jsonl; overrides the spec.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the unfinished run of the same command; where none is, begin.")
    ] = False,
    dtype: Precision = DType.AUTO,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Overrides the spec's.")] = None,
    device: Device = None,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Prune MODEL as SPEC says and write the smaller model, its plan and a report to a new folder."""
    from graphprune import processes
    from graphprune.cli.models import device_of, structure, told
    from graphprune.declare import trace_with
    from graphprune.engine.original import Source
    from graphprune.engine.parallel import check_launch
    from graphprune.engine.places import check_places, is_finished
    from graphprune.engine.prepare import check_purpose
    from graphprune.engine.quantise import check_available
    from graphprune.engine.run import prune
    from graphprune.export.fit import fit
    from graphprune.forecast import check_length
    from graphprune.specfile import load_spec
    from graphprune.validate import check

    wanted = load_spec(spec)
    if seed is not None:
        wanted = wanted.model_copy(update={"seed": seed})
    check_launch()
    processes.join()
    if resume and processes.from_main(lambda: is_finished(folder, wanted)):
        out().print(f"this run is finished: {folder} holds its result")
        return
    processes.from_main(lambda: check_places(wanted, folder, resume=resume) is None)
    _check_data(wanted, data)
    place = device_of(device)
    if wanted.quantization is not None:
        check_available(wanted.quantization, place)
    with working(f"tracing {model}"):  # before any weights are loaded, which may take long
        empty = structure(model, task=task, trust_remote_code=trust_remote_code)
        graph = trace_with(empty, wanted, source=spec)
        check(wanted, graph, spec)
        fit(wanted, graph, empty, spec)
        check_purpose(empty, wanted)
        check_length(empty, wanted, spec)
    source = Source(model, dtype.value, place, task, trust_remote_code)
    loaded, tokenizer = source, None
    if wanted.quantization is None:  # otherwise the run comes back for the weights in the end
        with working(f"loading {model}"):
            loaded, tokenizer = source.load(place)
    with _named_command(resume):
        result = prune(loaded, wanted, tokenizer=tokenizer, train_data=data, output=folder, resume=resume)
    out().print(result.report.to_markdown())
    if processes.is_main():
        for line in told(folder):
            out().print(line)
    processes.leave()


@contextmanager
def _named_command(resume: bool) -> Iterator[None]:
    """Adds to the message of an interrupted run the command that continues it."""
    from graphprune.engine.interrupts import Interrupted

    try:
        yield
    except Interrupted as error:
        command = shlex.join(["graphprune", *sys.argv[1:], *([] if resume else ["--resume"])])
        raise Interrupted(f"{error}\n    {command}", error.number) from None


def _check_data(spec: PruneSpec, data: Path | None) -> None:
    """Text that the run cannot do without is looked for before the model is loaded."""
    from graphprune.cli.models import check_file
    from graphprune.engine.modes import needs_data
    from graphprune.errors import DataError

    if data is not None:
        check_file(data)
    elif not needs_data(spec):
        return
    elif spec.data is None:
        raise DataError(
            f"training.mode {spec.training.mode} with criterion '{spec.criterion.name}' needs text, got none. "
            "Give --data FILE, or a data section in the spec."
        )
    elif spec.data.dataset is None:
        check_file(Path(spec.data.text or spec.data.jsonl or ""))
