"""How far a study is: one line that moves on a terminal, a line per cell elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from graphprune.study.grid import Cell
from graphprune.study.pace import duration
from graphprune.study.records import CellRecord

log = logging.getLogger(__name__)


class _Left(ProgressColumn):
    """The time until everything is done, which goes down while a cell is running."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        return Text("" if end is None else f"about {duration(max(end - time.monotonic(), 0))} left")


class Progress:
    """Tells of cells as they begin and end.

    Args:
        shown: whether to draw anything; the log has its lines all the same.
        console: where to draw; the terminal's error stream by default.
    """

    def __init__(self, *, shown: bool, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Left(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("cells", total=None, end=None)
        self._total = self._done = 0

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draws the line inside of the ``with`` block, and leaves it as it stands."""
        with self._bar:
            yield

    def begin(self, total: int, todo: int) -> None:
        """Tells how many cells there are, and how many of them have to be run."""
        self._total = todo
        log.info("%d cells, %d to run", total, todo)
        self._bar.update(self._task, total=todo, completed=0)

    def starts(self, cell: Cell, left: float | None) -> None:
        """A cell begins; ``left`` are the seconds until everything is done."""
        end = None if left is None else time.monotonic() + left
        self._bar.update(self._task, description=str(cell), end=end)

    def skipped(self) -> None:
        """Another process has taken the cell."""
        self._advance()

    def ends(self, cell: Cell, record: CellRecord, left: float | None) -> None:
        """A cell is done, or has failed."""
        self._advance()
        rest = f"; about {duration(left)} left" if left else ""
        log.info("[%d/%d] %s: %s, %s%s", self._done, self._total, cell, outcome(record), duration(record.seconds), rest)

    def _advance(self) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done)


def outcome(record: CellRecord) -> str:
    """What came of a cell, in a few words."""
    if record.status == "failed":
        return f"FAILED, {record.error.splitlines()[0]}"
    report = record.report
    found = (
        None
        if report is None
        else next((p for p in (report.perplexity_tuned, report.perplexity_pruned) if p is not None), None)
    )
    return "done" if found is None else f"perplexity {found:.2f}"
