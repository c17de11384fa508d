"""What is told while a study runs."""

import io
import logging

from rich.console import Console

from graphprune.study.progress import Progress, outcome
from graphprune.study.records import CellRecord


def test_a_line_per_cell_in_the_log(cells, small, caplog):
    first, second = cells(small(vary={"ratio": [0.2, 0.5]})).cells
    done = CellRecord(key="a", labels={}, seed=0, spec={}, seconds=3)
    failed = CellRecord(key="b", labels={}, seed=0, spec={}, status="failed", error="NaN: bad\nmore")
    told = Progress(shown=True, console=Console(file=io.StringIO()))
    with caplog.at_level(logging.INFO, "graphprune.study"), told.drawn():
        told.begin(3, 2)
        told.starts(first, None)
        told.ends(first, done, 100.0)
        told.ends(second, failed, None)
    assert [r.getMessage() for r in caplog.records] == [
        "3 cells, 2 to run",
        "[1/2] seed 0, tiny, 0.2: done, 3 s; about 2 min left",
        "[2/2] seed 0, tiny, 0.5: FAILED, NaN: bad, 0 s",
    ]


def test_on_a_terminal_the_line_shows_cell_number_and_time(cells, small):
    (cell,) = cells(small(vary={"ratio": [0.2]})).cells
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    told = Progress(shown=True, console=console)
    with told.drawn():
        told.begin(4, 4)
        told.starts(cell, 130.0)
        told.skipped()
    text = console.file.getvalue()
    assert "seed 0, tiny, 0.2" in text and "about 2 min left" in text and "1/4" in text


def test_what_came_of_a_cell():
    assert outcome(CellRecord(key="a", labels={}, seed=0, spec={})) == "done"
