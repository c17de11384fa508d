"""Which checkpoints of a training are whole: those that were marked last of all, and have not changed since.

A Trainer writes a checkpoint file by file under its final name, so a process that is killed leaves a folder that looks
like a checkpoint and is none. The mark lists every file with its size and hash. It is written when everything else is
on the disk, and appears under its name at once; a folder without it, or with other files than it says, is passed over.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from graphprune.checkpoint.manifest import FileRecord, sha256
from graphprune.files import flush_all, write_whole

log = logging.getLogger(__name__)

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class Mark(BaseModel):
    """What ``complete.json`` says: size and hash of every other file of the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    files: dict[str, FileRecord]


def mark(folder: Path) -> None:
    """Declares ``folder`` complete, when all of its files are on the disk.

    Raises:
        OSError: if it cannot be read or written.
    """
    flush_all(folder)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MARK and not f.name.endswith(".partial"))
    found = {
        file.relative_to(folder).as_posix(): FileRecord(bytes=file.stat().st_size, sha256=sha256(file))
        for file in files
    }
    write_whole(folder / MARK, Mark(files=found).model_dump_json(indent=1) + "\n", durable=True)


def fault(folder: Path) -> str | None:
    """Why ``folder`` is no whole checkpoint, in words; None if it is one."""
    try:
        marked = Mark.model_validate_json((folder / MARK).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return f"it has no {MARK}: writing it was not finished, or graphprune did not write it"
    except (ValidationError, UnicodeDecodeError):
        return f"its {MARK} is damaged, or of a newer version of graphprune"
    for name, record in marked.files.items():
        file = folder / name
        if not file.is_file():
            return f"its file {name} is missing"
        if file.stat().st_size != record.bytes:
            return f"its file {name} has {file.stat().st_size} bytes, expected {record.bytes}"
        if sha256(file) != record.sha256:
            return f"the content of its file {name} is not what was written"
    return None


def step_of(folder: Path) -> int:
    """The optimizer step that a checkpoint's name tells, -1 for any other name."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Everything in ``folder`` that is named like a checkpoint, whole or not, the latest first."""
    path = Path(folder)
    found = [p for p in path.iterdir() if p.is_dir() and step_of(p) >= 0] if path.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The latest whole checkpoint in the output folder of a Trainer, None where there is none.

    For a Trainer with a :class:`graphprune.PruneCallback`: ``trainer.train(resume_from_checkpoint=...)`` continues
    from it. Later ones that are half-written or damaged are passed over, with a warning.

    Args:
        folder: the Trainer's ``output_dir``.
    """
    for found in checkpoints(folder):
        problem = fault(found)
        if problem is None:
            return found
        log.warning("%s is passed over: %s", found, problem)
    return None
