"""``graphprune schema``: the JSON Schema of specs and study files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, write_text


def command(
    file: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Of study files instead of specs.")] = False,
) -> None:
    """Print the JSON Schema of specs, with the options of every installed criterion."""
    from graphprune import schema

    if study:
        from graphprune.study import studyfile

        text = json.dumps(studyfile.json_schema(), indent=2)
    else:
        text = json.dumps(schema.json_schema(), indent=2)
    if file is None:
        out().print(text)
    else:
        write_text(file, text + "\n", overwrite=force)
        kind = "study" if study else "spec"
        out().print(f"wrote {file}; put '# yaml-language-server: $schema={file}' at the top of a {kind}")
