"""A results folder, read: the study, its cells, and the models as they came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from graphprune.study.records import CellRecord, DenseRecord
from graphprune.study.schema import Study


@dataclass(frozen=True)
class Results:
    """What was found.

    Attributes:
        study: as it was run.
        cells: in the order of the grid.
        dense: every model before pruning.
        folder: where all of it is kept.
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

    def scores(self, cell: CellRecord) -> dict[str, Tensor]:
        """The scores that ``cell`` was pruned by, by group; empty where none are kept."""
        from safetensors.torch import load_file

        return load_file(self.folder / cell.scores) if cell.scores else {}
