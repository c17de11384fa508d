"""What a report is made of: sections with paragraphs, figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphprune.study.report.figures import Picture


@dataclass(frozen=True)
class Cell:
    """A field of a table: what is shown, and the number that it is sorted by."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: names of the columns.
        rows: fields; a plain text is one that is sorted by itself.
        caption: what it is.
        hidden: whether it is folded away at first.
        filtered: whether there is a box to filter its rows with.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    hidden: bool = False
    filtered: bool = False

    @property
    def fields(self) -> list[list[Cell]]:
        """Its rows, with every field a :class:`Cell`."""
        return [[field if isinstance(field, Cell) else Cell(field) for field in row] for row in self.rows]


@dataclass(frozen=True)
class Code:
    """Something to copy, folded away under ``title``."""

    title: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Fold:
    """Several parts, folded away together under ``title``; those not ``essential`` are left out of the Markdown."""

    title: str
    blocks: Sequence[Block]
    essential: bool = True


Block = str | Picture | Table | Code | Points | Fold
"""A part of a section; a text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def pictures(self) -> list[Picture]:
        """Its figures."""
        return _pictures(self.blocks)


def _pictures(blocks: Sequence[Block]) -> list[Picture]:
    found = []
    for block in blocks:
        if isinstance(block, Fold):
            found += _pictures(block.blocks)
        elif isinstance(block, Picture):
            found.append(block)
    return found
