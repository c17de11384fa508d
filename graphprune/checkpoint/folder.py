"""Output folders: never over somebody's files, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphprune.errors import CheckpointError


def check_output_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that may be written: it does not exist yet, or is empty.

    Raises:
        CheckpointError: if it is a file, or has anything in it.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir())
        if found:
            raise CheckpointError(
                f"output folder {path} is not empty ({len(found)} entries, such as '{found[0]}'). "
                "Nothing is ever overwritten: name a new folder, or empty this one."
            )
    elif path.exists() or path.is_symlink():
        raise CheckpointError(f"output folder {path} is a file. Name a new folder.")
    return path


@contextmanager
def written_whole(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the block ends.

    Whatever ends the block early, Ctrl-C included, removes it, and ``folder`` is as it was.

    Raises:
        CheckpointError: if ``folder`` is not empty, before the block or after it.
    """
    path = check_output_folder(folder).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        if check_output_folder(path).is_dir():
            path.rmdir()
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
