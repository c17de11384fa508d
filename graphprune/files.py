"""Small files, written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, text: str, *, durable: bool = False) -> None:
    """Writes UTF-8 text through a temporary file beside ``file``, which takes its name at the end.

    Whatever ends it early, Ctrl-C included, leaves ``file`` as it was and nothing beside it (a killed process may
    leave the temporary file). With ``durable`` it is on the disk when the call returns, power cut or not.

    Raises:
        OSError: if the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        if durable:
            flush(temporary)
        os.replace(temporary, file)
        if durable:
            flush(file.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def flush(path: Path) -> None:
    """Waits until what was written to a file, or which names a folder has, is on the disk.

    Raises:
        OSError: if it is not there, or the disk fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_all(folder: Path) -> None:
    """:func:`flush` for a folder, everything below it, and its own name.

    Raises:
        OSError: if it is not there, or the disk fails.
    """
    for path in (*folder.rglob("*"), folder, folder.parent):
        flush(path)
