"""How the cells of a study are laid out for a reader: what is compared, along what, and what is apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from graphprune.study.records import CellRecord
from graphprune.study.results import Results

MODEL, RATIO = "model", "ratio"

Facet = tuple[str, ...]
"""Labels of the axes that are apart."""


class Place(NamedTuple):
    """Where settings are compared: labels of the axes that are apart, and the one along which they are followed."""

    facet: Facet
    point: str


@dataclass(frozen=True)
class Layout:
    """The axes of a study in their roles.

    Attributes:
        series: the axis whose values are compared.
        across: the axis along which they are followed; None where there is no second one.
        rest: the other axes, ``model`` among them; every combination of theirs is a facet.
        labels: of every axis, in the order of the grid.
        numbers: of the axes whose values are all numbers: the number of every label.
        cells: all of them.
    """

    series: str
    across: str | None
    rest: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, Mapping[str, float]]
    cells: tuple[CellRecord, ...]

    @classmethod
    def of(cls, results: Results) -> Layout:
        """Of the axes that the cells have, as the study asks for them, or by default its first, and the ratio."""
        cells = results.cells
        axes = tuple(dict.fromkeys(axis for cell in cells for axis in cell.labels))
        varied = [axis for axis in results.study.vary if axis in axes] or [a for a in axes if a != MODEL] or [MODEL]
        series = results.study.series if results.study.series in axes else varied[0]
        others = [axis for axis in varied if axis != series]
        across = results.study.across if results.study.across in axes else None
        if across is None or across == series:
            across = RATIO if RATIO in others else next(iter(others), None)
        numbers = {
            axis: {cell.labels[axis]: cell.values[axis] for cell in cells if axis in cell.labels}
            for axis in axes
            if all(axis in cell.values for cell in cells if axis in cell.labels)
        }
        labels = {
            axis: _ordered((cell.labels[axis] for cell in cells if axis in cell.labels), numbers.get(axis))
            for axis in axes
        }
        rest = tuple(axis for axis in axes if axis not in (series, across))
        return cls(str(series), across, rest, labels, numbers, cells)

    def swapped(self) -> Layout:
        """The same with ``series`` and ``across`` in each other's place."""
        assert self.across is not None
        return replace(self, series=self.across, across=self.series)

    @property
    def settings(self) -> tuple[str, ...]:
        """What is compared."""
        return self.labels.get(self.series, ())

    @property
    def points(self) -> tuple[str, ...]:
        """Along what; one empty label where there is no such axis."""
        return self.labels[self.across] if self.across is not None else ("",)

    @property
    def numeric(self) -> bool:
        """Whether the points are numbers."""
        return self.across is not None and self.across in self.numbers

    @property
    def positions(self) -> tuple[float, ...]:
        """Of the points on an axis."""
        if self.across is not None and self.numeric:
            return tuple(self.numbers[self.across][point] for point in self.points)
        return tuple(map(float, range(len(self.points))))

    @cached_property
    def facets(self) -> tuple[Facet, ...]:
        """Combinations of the other axes that occur, in the order of the grid."""
        return tuple(dict.fromkeys(self.facet(cell) for cell in self.cells))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of all cells."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    def facet(self, cell: CellRecord) -> Facet:
        """The combination that a cell belongs to."""
        return tuple(cell.labels.get(axis, "") for axis in self.rest)

    def point(self, cell: CellRecord) -> str:
        """Where on the ``across`` axis a cell lies."""
        return cell.labels.get(self.across, "") if self.across is not None else ""

    def setting(self, cell: CellRecord) -> str:
        """Which of the settings a cell ran."""
        return cell.labels.get(self.series, "")

    def select(self, facet: Facet, point: str | None = None, setting: str | None = None) -> list[CellRecord]:
        """The cells of a facet, of one point and of one setting where they are given, in the order of the grid."""
        return self._by_place.get((facet, point, setting), [])

    @cached_property
    def _by_place(self) -> dict[tuple[Facet, str | None, str | None], list[CellRecord]]:
        found: dict[tuple[Facet, str | None, str | None], list[CellRecord]] = {}
        for cell in self.cells:
            for point in (self.point(cell), None):
                for setting in (self.setting(cell), None):
                    found.setdefault((self.facet(cell), point, setting), []).append(cell)
        return found

    def model(self, facet: Facet) -> str | None:
        """The model of a facet; None where models are what is compared or followed."""
        return facet[self.rest.index(MODEL)] if MODEL in self.rest else None

    def title(self, facet: Facet) -> str:
        """What sets a facet apart from the others, in words; empty where there is only one."""
        varied = [(axis, label) for axis, label in zip(self.rest, facet, strict=True) if len(self.labels[axis]) > 1]
        return ", ".join(label if axis == MODEL else f"{axis} {label}" for axis, label in varied)

    def at(self, point: str) -> str:
        """A point in words: ``ratio 0.5``; empty where there is no such axis."""
        return f"{self.across} {point}" if self.across is not None else ""

    def where(self, place: Place) -> str:
        """A place in words."""
        return ", ".join(part for part in (self.title(place.facet), self.at(place.point)) if part)


def _ordered(labels: Iterable[str], numbers: Mapping[str, float] | None) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(labels))
    return found if numbers is None else tuple(sorted(found, key=lambda label: numbers[label]))
