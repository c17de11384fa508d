"""``graphprune studies``: the study files that are shipped."""

from __future__ import annotations

from typing import Annotated

import typer

from graphprune.cli.console import out


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print the file of this study, to be changed.")
    ] = None,
) -> None:
    """List the shipped studies, which `graphprune compare study:NAME` runs, or print one."""
    from graphprune.study.studyfile import STUDY, load_study, studies, study_text

    if name is not None:
        out().print(study_text(name.removeprefix(STUDY)), end="")
        return
    for known in studies():
        study = load_study(STUDY + known)
        out().print(f"{STUDY}{known}: {study.title}")
        for line in (study.question, study.source):
            if line:
                out().print(f"    {line}")
    if not studies():
        out().print("no study is shipped with this version")
