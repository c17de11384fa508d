"""How long the rest of a study will take, from what its cells took so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean

from graphprune.study.grid import Cell

Kind = tuple[str, str, int, str]


class Pace:
    """Seconds of cells by kind: cells of the same model, mode, steps and criterion take about the same."""

    def __init__(self) -> None:
        self._seconds: dict[Kind, list[float]] = defaultdict(list)

    def took(self, cell: Cell, seconds: float) -> None:
        """Takes in what a cell took."""
        self._seconds[_kind(cell)].append(seconds)

    def left(self, cells: Iterable[Cell]) -> float | None:
        """Seconds for these cells, one after the other; None before anything is known.

        A kind that was not met yet is taken for what is nearest: as the same without regard to the criterion, then the
        mean of all.
        """
        if not self._seconds:
            return None
        return sum(self._of(_kind(cell)) for cell in cells)

    def _of(self, kind: Kind) -> float:
        for known in (kind, kind[:3], kind[:2], kind[:1], ()):
            found = [s for k, values in self._seconds.items() if k[: len(known)] == known for s in values]
            if found:
                return mean(found)
        raise AssertionError("there is at least one")


def duration(seconds: float | None) -> str:
    """``1 h 5 min``, or nothing where it is not known."""
    if seconds is None:
        return "unknown"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _kind(cell: Cell) -> Kind:
    training = cell.spec.training
    steps = 0 if training.mode == "none" else training.steps
    return cell.model, training.mode, steps, cell.spec.criterion.name
