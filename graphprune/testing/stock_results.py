"""What is found out about stock checkpoints of every architecture, as it is kept in a file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class StockRow(BaseModel):
    """What was found for one kind.

    Attributes:
        kind: what is pruned.
        asked: how many units of how many were to stay, by role.
        kept: how many did; empty where no stock config describes any size near to that.
        stand_in: the class as which the model was written, where that is not its own.
        loads: whether stock ``from_pretrained`` gives the same logits; None where there is nothing to load.
        reason: why not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    asked: str
    kept: str = ""
    stand_in: str = ""
    loads: bool | None = None
    reason: str = ""


class StockResult(BaseModel):
    """The rows of one case, or why there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    rows: tuple[StockRow, ...] = ()
    failure: str = ""


class _Results(BaseModel):
    """The results of many cases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: tuple[StockResult, ...] = ()


def read_stock(file: Path) -> tuple[StockResult, ...]:
    """The results in a file; none where there is no such file."""
    return _Results.model_validate_json(file.read_text("utf-8")).results if file.is_file() else ()


def write_stock(file: Path, results: Iterable[StockResult]) -> None:
    """Writes the results, one case per line, whole or not at all."""
    lines = ",\n".join(result.model_dump_json(exclude_defaults=True) for result in results)
    temporary = file.with_name(file.name + ".partial")
    temporary.write_text(f'{{"results": [\n{lines}\n]}}\n', encoding="utf-8")
    os.replace(temporary, file)
