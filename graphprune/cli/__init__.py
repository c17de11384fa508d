"""The command line: one verb per file, each a thin layer over the public functions.

Only light modules are imported here, so that ``graphprune --help`` answers at once; a verb imports what it needs.
"""

from __future__ import annotations

import warnings

import typer

from graphprune.cli import apply, compare, compose, eval, init, prune, quickstart, schema, studies, trace, validate  # noqa: A004 - a verb
from graphprune.cli.console import Verbs

app = typer.Typer(
    cls=Verbs,
    help="Graph-based structured pruning of Hugging Face decoders: MODEL and SPEC in, smaller model out. "
    "MODEL is a hub id or a local folder everywhere; SPEC is a YAML file or 'recipe:NAME'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _verb in (quickstart, trace, init, validate, prune, apply, compose, eval, compare, studies, schema):
    app.command(_verb.__name__.rsplit(".", 1)[-1])(_verb.command)


def main() -> None:
    """Runs the command line; the entry point of the ``graphprune`` script."""
    # Deprecations inside other libraries are theirs to read; the tests show them.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    app()


__all__ = ["app", "main"]
