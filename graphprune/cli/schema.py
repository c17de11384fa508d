"""``graphprune schema``: the JSON Schema of specs, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphprune.cli.console import out, write_text


def command(
    file: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Print the JSON Schema of specs, with the options of every installed criterion."""
    from graphprune.schema import json_schema

    text = json.dumps(json_schema(), indent=2)
    if file is None:
        out().print(text)
    else:
        write_text(file, text + "\n", overwrite=force)
        out().print(f"wrote {file}; put '# yaml-language-server: $schema={file}' at the top of a spec")
