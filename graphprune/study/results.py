"""What a study has found: the records of its cells, read from its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from graphprune.errors import CheckpointError
from graphprune.study.folder import INDEX, STUDY_FILE, Index, IndexedCell, ResultsFolder
from graphprune.study.records import CellRecord, DenseRecord
from graphprune.study.schema import Study
from graphprune.study.scores import read_scores
from graphprune.study.studyfile import load_study


@dataclass(frozen=True)
class Results:
    """The results of a study, as far as they are there.

    Attributes:
        study: as it was run last.
        cells: the records there are, failed ones included, in the order of the grid.
        dense: what was measured of every model as it came.
        folder: where they are.
        missing: cells of the grid that have not been run.
        notes: on the grid as a whole.
        versions: of Python, graphprune and what it builds on.
    """

    study: Study
    cells: tuple[CellRecord, ...]
    dense: tuple[DenseRecord, ...]
    folder: Path
    missing: int = 0
    notes: tuple[str, ...] = ()
    versions: dict[str, str] | None = None

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Results:
        """Reads a results folder, of a study that is done or not.

        Raises:
            CheckpointError: if there is none, it is of another version, or damaged.
        """
        place = ResultsFolder(Path(folder))
        index_file = place.path / INDEX
        if not index_file.is_file():
            raise CheckpointError(
                f"no results of a study in {place.path}: expected a folder with {INDEX}, as 'graphprune compare' writes"
            )
        place.check()
        try:
            index = Index.model_validate_json(index_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise CheckpointError(f"{index_file} is damaged: {error}. Run the study again into this folder.") from None
        found = [_relabelled(record, at) for at in index.cells if (record := place.cell(at.key)) is not None]
        dense = [r for label, key in index.dense.items() if (r := _named(place.dense(key), label)) is not None]
        return cls(
            study=load_study(place.path / STUDY_FILE),
            cells=tuple(found),
            dense=tuple(dense),
            folder=place.path,
            missing=len(index.cells) - len(found),
            notes=index.notes,
            versions=index.versions,
        )

    def scores(self, cell: CellRecord) -> dict[str, Tensor]:
        """What the units of a cell were chosen by: float32 of shape ``(size,)`` by group name; empty where none is.

        Raises:
            CheckpointError: if the file is missing or damaged.
        """
        return read_scores(self.folder / cell.scores) if cell.scores else {}


def _relabelled(record: CellRecord, at: IndexedCell) -> CellRecord:
    """The record under the labels of this place: the same run may be several cells, or be called otherwise by now."""
    return record.model_copy(update={"labels": at.labels, "values": at.values, "seed": at.seed, "spec": at.spec})


def _named(record: DenseRecord | None, label: str) -> DenseRecord | None:
    return None if record is None else record.model_copy(update={"model": label})
