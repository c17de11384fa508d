"""``graphprune validate``: does a spec make sense, and does it fit a model?"""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune.cli.console import out, working
from graphprune.cli.options import Spec, Task, Trust


def command(
    spec: Spec,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Hub id, local folder or config file; without it only SPEC is read."),
    ] = None,
    task: Task = None,
    trust_remote_code: Trust = False,
) -> None:
    """Check SPEC, alone or against the structure of MODEL. Needs no weights and no data."""
    from graphprune.specfile import load_spec

    wanted = load_spec(spec)
    if model is None:
        out().print(f"{spec} is a valid spec. Give a MODEL too to check what it selects.")
        return
    from graphprune.cli.models import structure
    from graphprune.declare import trace_with
    from graphprune.engine.prepare import check_purpose
    from graphprune.export.fit import fit
    from graphprune.forecast import check_length, preview
    from graphprune.validate import check

    with working(f"tracing {model}"):
        loaded = structure(model, task=task, trust_remote_code=trust_remote_code)
        graph = trace_with(loaded, wanted, source=spec)
    notes = check(wanted, graph, spec)
    check_purpose(loaded, wanted)
    check_length(loaded, wanted, spec)
    with working(f"looking for a config for what is left of {model}"):
        fitted = fit(wanted, graph, loaded, spec)
    lines = [*preview(wanted, graph, fitted), f"the result: {fitted}"]
    for line in [*lines, *(f"note: {note}" for note in [*notes, *fitted.notes])]:
        out().print(line)
    out().print(f"{spec} fits {model}")
