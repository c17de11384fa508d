"""The log of a study: everything in a file, and on the terminal only what is about the grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ALL, _STUDY = "graphprune", "graphprune.study"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def log_file(folder: Path, rank: int) -> Iterator[None]:
    """Adds what the package logs to ``study.log``, with the tracebacks of cells that failed."""
    name = "study.log" if rank == 0 else f"study-{rank}.log"
    handler = logging.FileHandler(folder / name, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger(_ALL)
    level = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Every prune event of every cell is in its record; on a terminal they, and traces, would bury the grid."""

    def about_the_grid(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or (record.name.startswith(_STUDY) and not record.exc_info)

    handlers = [h for h in logging.getLogger(_ALL).handlers if not isinstance(h, logging.FileHandler)]
    for handler in handlers:
        handler.addFilter(about_the_grid)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(about_the_grid)
