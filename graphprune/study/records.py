"""What is kept of every cell of a study, and of every model before pruning: one JSON file each."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from graphprune.evaluate.evaluation import Evaluation
from graphprune.report.report import Report

#: Of the files in a results folder. A change of what they hold, or of what a cell's key covers, is another one.
FORMAT = 1


class GroupRecord(BaseModel):
    """A group that could lose units: what it is, and which of its units went.

    Attributes:
        role: such as ``mlp.channel``.
        layer: index on the main stack; None outside of it.
        size: units before pruning.
        removed: the units that are gone, sorted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    layer: int | None
    size: int
    removed: tuple[int, ...] = ()


class EventRecord(BaseModel):
    """A removal of a joint run: at which optimizer step, and the part of the target that is gone since then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    fraction: float
    removed: dict[str, int]
    loss: float | None = None


class CellRecord(BaseModel):
    """One run.

    Attributes:
        format: of this file.
        key: hash of everything that the result depends on; the name of the file.
        labels: of the axes, in the study's order, ``model`` first; the seed is not among them.
        values: where the value of an axis is a number, that number, by axis.
        seed: of the run.
        spec: the whole spec, defaults included.
        command: the command that repeats the cell alone.
        status: ``done``, or ``failed`` with its reason in ``error``.
        report: of the run (:class:`graphprune.Report`): sizes, perplexities, time and memory of its stages.
        evaluation: what the study's ``measure`` asks of the result.
        segments: of the perplexities ``dense``, ``pruned`` and ``tuned``, where they exist: the mean negative
            log-likelihood per predicted token of every segment of the evaluation text, in order, the same text for
            all cells of a model.
        groups: what could be removed, by name, in the order of the graph.
        events: of a joint run.
        log: the Trainer's log lines.
        scores: the file with the scores of all groups, relative to the results folder; empty where there is none.
        seconds: of the whole cell, scores read from the cache not counted.
        error: why it failed: the kind of error and its message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format: int = FORMAT
    key: str
    labels: dict[str, str]
    values: dict[str, float] = {}
    seed: int
    spec: dict[str, Any]
    command: str = ""
    status: Literal["done", "failed"] = "done"
    report: Report | None = None
    evaluation: Evaluation | None = None
    segments: dict[str, tuple[float, ...]] = {}
    groups: dict[str, GroupRecord] = {}
    events: tuple[EventRecord, ...] = ()
    log: tuple[dict[str, float], ...] = ()
    scores: str = ""
    seconds: float = 0.0
    error: str = ""


class DenseRecord(BaseModel):
    """A model as it came, measured like the results.

    Attributes:
        format: of this file.
        key: hash of everything that the numbers depend on; the name of the file.
        model: its label.
        evaluation: what the study's ``measure`` asks of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format: int = FORMAT
    key: str
    model: str
    evaluation: Evaluation
