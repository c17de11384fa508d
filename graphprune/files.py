"""Small files, written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes UTF-8 text through a temporary file beside ``file``, which takes its name at the end.

    Whatever ends it early, Ctrl-C included, leaves ``file`` as it was and nothing beside it.

    Raises:
        OSError: if the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
