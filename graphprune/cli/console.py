"""What all verbs share: where they print, and how they fail."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from graphprune.errors import CheckpointError, GraphPruneError, OtherProcessError
from graphprune.files import write_whole

#: Exit code of a process that was interrupted from the keyboard: 128 + SIGINT.
INTERRUPTED = 130


class Verbs(TyperGroup):
    """Prints errors raised on purpose as a message; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with log_lines():
                return super().invoke(ctx)
        except OtherProcessError as error:  # the one that failed has said so itself
            raise typer.Exit(error.exit_code) from None
        except GraphPruneError as error:
            errors().print(f"error: {error}", style="red")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            # One of the engine's says where the state of the run is, and how to go on.
            errors().print(str(error) or "interrupted: nothing half-written remains", style="yellow")
            raise typer.Exit(getattr(error, "exit_code", INTERRUPTED)) from None


def out() -> Console:
    """Standard output; made anew each time, because tests and notebooks replace it."""
    return Console(markup=False, highlight=False, soft_wrap=True, quiet=not _speaks())


def _speaks() -> bool:
    """Of several processes, which a launcher numbers, the first alone tells what it does; errors all may tell."""
    return os.environ.get("RANK", "0") == "0"


def errors() -> Console:
    """Standard error. No markup: ``targets[2].ratio`` is meant as it stands."""
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


class _Lines(logging.Handler):
    """Prints each record as a line; above a progress bar, where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _speaks() and record.levelno < logging.ERROR:
            return
        errors().print(self.format(record))


@contextmanager
def log_lines() -> Iterator[None]:
    """What the package logs (prune events, adjustments) appears on standard error."""
    logger, handler = logging.getLogger("graphprune"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on standard error while something slow happens; a single line where that is no terminal."""
    console = errors()
    if not _speaks():
        yield
    elif console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what)
        yield


def write_text(file: Path, text: str, *, overwrite: bool) -> None:
    """Writes a small file, whole or not at all.

    Raises:
        CheckpointError: if the file exists and may not be overwritten, or cannot be written.
    """
    if file.exists() and not overwrite:
        raise CheckpointError(f"{file} exists already. Choose another name, or pass --force to overwrite it.")
    try:
        write_whole(file, text)
    except OSError as error:
        raise CheckpointError(f"cannot write {file}: {error.strerror}. Does the folder exist?") from None
