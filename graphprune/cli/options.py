"""Arguments and options that several verbs take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class DType(str, Enum):
    """Number formats a model can be loaded in; ``auto`` is the one of its checkpoint."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.")]
Structure = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or config file.")]
Task = Annotated[
    str | None,
    typer.Option("--task", help="What MODEL is for, such as sequence-classification; by default its config says so."),
]
Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file, or 'recipe:NAME'.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to write; must not exist, or be empty.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; by default the accelerator, if any.")
]
Precision = Annotated[DType, typer.Option("--dtype", help="Number format to load the model in.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the modelling code that comes with the checkpoint.")
]
