"""The folder of a study: what is kept where, and that it is never mixed with anything else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from graphprune.checkpoint.manifest import library_versions
from graphprune.errors import CheckpointError
from graphprune.files import write_whole
from graphprune.study.records import FORMAT, CellRecord, DenseRecord
from graphprune.study.schema import Study
from graphprune.study.studyfile import dump_study

log = logging.getLogger(__name__)
R = TypeVar("R", CellRecord, DenseRecord)

INDEX, STUDY_FILE = "results.json", "study.yaml"
CELLS, DENSE, SCORES = "cells", "dense", "scores"


class IndexedCell(BaseModel):
    """A place of the grid: what it is called in this study, and the record of its run, which others may share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    labels: dict[str, str]
    values: dict[str, float] = {}
    seed: int
    spec: dict[str, Any]


class Index(BaseModel):
    """``results.json``: which records are the results of the study as it was run last.

    Attributes:
        format: of the whole folder.
        title: of the study.
        versions: of Python, graphprune and what it builds on, as it was run last.
        notes: on the grid as a whole.
        cells: in the order of the grid.
        dense: keys of the models' own records, by label.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    title: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    cells: tuple[IndexedCell, ...] = ()
    dense: dict[str, str] = {}


class ResultsFolder:
    """Reads and writes the files of a results folder; every one of them appears whole.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()

    def check(self) -> None:
        """Refuses a folder that is not one of a study, or of another version.

        Raises:
            CheckpointError: saying what it is, and what to do.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise CheckpointError(f"expected a folder for the results, got the file {self.path}")
        if not any(self.path.iterdir()):
            return
        index = self.path / INDEX
        if not index.is_file():
            raise CheckpointError(
                f"{self.path} holds other things: expected a new or empty folder, or one with the {INDEX} of a study. "
                "Choose another one."
            )
        try:
            found = json.loads(index.read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index} cannot be read ({error!r}). Was it written by a study?") from None
        if found != FORMAT:
            raise CheckpointError(
                f"{self.path} holds results in format {found}, and this version of graphprune writes format {FORMAT}; "
                "they must not be mixed. Choose another folder, or go on with the version that began it: "
                f"{self._writer(index)}."
            )

    def begin(self) -> None:
        """Makes the folder; whether it may be used is :meth:`check`'s business.

        Raises:
            CheckpointError: if it cannot be written.
        """
        try:
            for name in (CELLS, DENSE, SCORES):
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {self.path}: {error.strerror}") from None

    def write_index(
        self, study: Study, cells: tuple[IndexedCell, ...], dense: dict[str, str], notes: Iterable[str]
    ) -> None:
        """What was asked, and where its results are or will be."""
        index = Index(
            title=study.title, versions=library_versions(), cells=cells, dense=dense, notes=tuple(dict.fromkeys(notes))
        )
        write_whole(self.path / INDEX, index.model_dump_json(indent=1) + "\n")
        write_whole(self.path / STUDY_FILE, dump_study(study))

    def cell(self, key: str) -> CellRecord | None:
        """The record of a run; None where there is none, or only a damaged one."""
        return _read(self.path / CELLS / f"{key}.json", CellRecord)

    def dense(self, key: str) -> DenseRecord | None:
        """The record of a model as it came."""
        return _read(self.path / DENSE / f"{key}.json", DenseRecord)

    def keep(self, record: CellRecord | DenseRecord) -> None:
        """Writes a record under its key.

        Raises:
            CheckpointError: if that cannot be done.
        """
        kind = CELLS if isinstance(record, CellRecord) else DENSE
        file = self.path / kind / f"{record.key}.json"
        try:
            write_whole(file, record.model_dump_json(indent=1) + "\n", durable=True)
        except OSError as error:
            raise CheckpointError(f"cannot write {file}: {error.strerror}") from None

    def _writer(self, index: Path) -> str:
        versions = json.loads(index.read_text(encoding="utf-8")).get("versions") or {}
        return f"graphprune {versions.get('graphprune', 'of an unknown version')}"


def _read(file: Path, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        log.warning("%s is damaged and is computed again: %s", file, str(error).splitlines()[0])
        return None
