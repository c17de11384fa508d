"""The report of a study: one page that opens offline, its figures, the same as Markdown, and the tables."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from graphprune.errors import MissingExtraError
from graphprune.files import write_whole

if TYPE_CHECKING:
    from graphprune.study.findings import Findings
    from graphprune.study.report.section import Section
    from graphprune.study.results import Results

__all__ = ["check_installed", "write_report"]

_NEEDED = ("matplotlib", "pandas", "pyarrow", "jinja2")


def write_report(results: Results, folder: Path) -> None:
    """Writes ``report.html``, ``report.md``, ``figures/``, ``results.csv``, ``results.parquet`` and ``summary.csv``.

    Can be called again whenever more cells are there; files of the same names are replaced.

    Args:
        results: cells that are done, and cells that failed; at least one.
        folder: exists or is made.

    Raises:
        MissingExtraError: if a package of the extra ``report`` is not installed.
    """
    check_installed()
    from graphprune.study.findings import Findings
    from graphprune.study.report.page import html
    from graphprune.study.report.text import markdown
    from graphprune.study.table import write_tables

    findings = Findings(results)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    title = results.study.title
    parts = sections(findings)
    images = {picture.name: picture.save(figures) for section in parts for picture in section.pictures}
    write_tables(findings, folder)
    write_whole(folder / "report.md", markdown(title, parts))
    write_whole(folder / "report.html", html(title, parts, images))


def check_installed() -> None:
    """Looks for what the report needs, before hours are spent on what it is about.

    Raises:
        MissingExtraError: if a package of the extra ``report`` is not installed.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(missing[0], "report", "the report of a study")


def sections(findings: Findings) -> list[Section]:
    """What the report says, in order; only what the study has data for."""
    from graphprune.study.report import (
        answer,
        everything,
        quality,
        resources,
        similarity,
        tradeoff,
        training,
        units,
    )

    makers = (
        quality.section,
        resources.section,
        similarity.section,
        units.section,
        training.section,
        tradeoff.section,
        everything.cells_section,
        everything.reproduce_section,
    )
    # Sentences are about verdicts; figures and tables are laid out as the study asks.
    told = [answer.section(findings.judging)]
    return told + [section for maker in makers if (section := maker(findings)) is not None]
