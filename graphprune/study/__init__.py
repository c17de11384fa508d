"""Studies: many runs over a grid, kept as they finish, and told in one report."""

from __future__ import annotations

from graphprune.study.records import CellRecord, DenseRecord
from graphprune.study.schema import Study

__all__ = ["CellRecord", "DenseRecord", "Study"]
