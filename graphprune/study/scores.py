"""Scores on disk: what one cell has computed serves every other that would compute the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graphprune.errors import CheckpointError
from graphprune.report.stages import Stage

_STAGE = "stage"


def write_scores(file: Path, scores: Mapping[str, Tensor], stage: Stage | None) -> None:
    """Writes scores whole, with what it took to compute them."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    metadata = {} if stage is None else {_STAGE: stage.model_dump_json()}
    try:
        save_file({name: value.contiguous() for name, value in scores.items()}, temporary, metadata=metadata)
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_scores(file: Path) -> dict[str, Tensor]:
    """The scores in a file, in the order of the graph they were computed for where that is known.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    return read_scores_and_stage(file)[0]


def read_scores_and_stage(file: Path) -> tuple[dict[str, Tensor], Stage | None]:
    """The same, and what it took to compute them."""
    try:
        with safe_open(file, framework="pt") as opened:
            told = (opened.metadata() or {}).get(_STAGE)
            scores = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return scores, None if told is None else Stage.model_validate_json(told)
    except (OSError, SafetensorError, ValidationError) as error:
        raise CheckpointError(f"the scores in {file} cannot be read: {error}") from None
