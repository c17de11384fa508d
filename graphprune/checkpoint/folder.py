"""Output folders: never over somebody's files, whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from graphprune.errors import CheckpointError


def check_output_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that may be written: it does not exist yet, or is empty.

    Raises:
        CheckpointError: if it is a file, has anything in it, or lies where no folder can be made.
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
    above = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        fault = "cannot be written to" if above.is_dir() else "is a file"
        raise CheckpointError(f"output folder {path} cannot be made, because {above} {fault}. Name another folder.")
    return path


def clear_partial(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes of this machine left beside ``folder`` when they were about to write it."""
    path = Path(folder).expanduser().absolute()
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = partial.name.split(".")[-2]
        if number.isdecimal() and not _alive(int(number)):
            shutil.rmtree(partial, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def written_whole(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when the block ends.

    Whatever ends the block early, Ctrl-C included, removes it, and ``folder`` is as it was. What a killed process left
    goes when the next one begins.

    Raises:
        CheckpointError: if ``folder`` is not empty, before the block or after it, or cannot be written.
    """
    path = check_output_folder(folder).absolute()
    clear_partial(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    made = [p for p in path.parents if not p.exists()]  # innermost first
    try:
        partial.mkdir(parents=True)
        yield partial
        if check_output_folder(path).is_dir():
            path.rmdir()
        partial.rename(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # never made, or no longer empty
                parent.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise CheckpointError(f"{path} cannot be written: {error}. Nothing is left of it.") from error
        raise
