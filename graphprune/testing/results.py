"""What is measured for the coverage table, as it is kept in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from graphprune.prove import ProofRow
from graphprune.testing.parts import PartRow


class Result(BaseModel):
    """What was measured for one case.

    Attributes:
        case: its name.
        sources: hash of the sources it was measured with.
        seconds: of the trace.
        total: seconds of everything.
        notes: what the tracer could not follow.
        rows: the proof, kind by kind.
        parts: what the names of modules promise, and what of it can be pruned.
        failure: why there is no proof.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    sources: str
    seconds: float = 0.0
    total: float = 0.0
    notes: tuple[str, ...] = ()
    rows: tuple[ProofRow, ...] = ()
    parts: tuple[PartRow, ...] = ()
    failure: str = ""

    def of(self, role: str) -> list[ProofRow]:
        """The rows of one role, one per fate."""
        return [row for row in self.rows if row.role == role]

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that fails: the case itself, or kinds of it."""
        found = [f"{row.role}: {row.problem}" for row in self.rows if row.problem]
        return (self.failure, *found) if self.failure else tuple(found)


class Results(BaseModel):
    """The results of many cases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: tuple[Result, ...] = ()


def read_results(file: Path) -> tuple[Result, ...]:
    """The results in a file; none where there is no such file."""
    return Results.model_validate_json(file.read_text("utf-8")).results if file.is_file() else ()


def write_results(file: Path, results: Iterable[Result]) -> None:
    """Writes the results, one case per line, whole or not at all."""
    lines = ",\n".join(result.model_dump_json(exclude_defaults=True) for result in results)
    temporary = file.with_name(file.name + ".partial")
    temporary.write_text(f'{{"results": [\n{lines}\n]}}\n', encoding="utf-8")
    os.replace(temporary, file)
