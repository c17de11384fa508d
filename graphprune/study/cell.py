"""One cell: run, measured, and put down as a record, whatever comes of it."""

from __future__ import annotations

import gc
import logging
import time
from pathlib import Path

import torch

from graphprune.engine.run import PruneResult, prune
from graphprune.errors import CheckpointError, GraphPruneError
from graphprune.evaluate import Questions, evaluate
from graphprune.report.report import Report
from graphprune.report.stages import Stage
from graphprune.study.folder import SCORES, ResultsFolder
from graphprune.study.grid import Cell
from graphprune.study.records import CellRecord, EventRecord, GroupRecord
from graphprune.study.scores import read_scores_and_stage, write_scores
from graphprune.study.subject import Keys, Subject
from graphprune.validate import resolve_targets

log = logging.getLogger(__name__)

#: Of a run, the perplexities by what they are called in a study.
_LOSSES = {"dense": "before", "pruned": "pruned", "tuned": "tuned"}
#: The stage that takes the place of scoring where scores are at hand.
_RANK, _SCORE = "rank", "score"


def run_cell(
    cell: Cell, keys: Keys, subject: Subject, questions: Questions, folder: ResultsFolder, command: str
) -> CellRecord:
    """Runs a cell, or says why it failed.

    Args:
        cell: what to run.
        keys: under what names to keep it.
        subject: the model it is about.
        questions: what to measure of the result.
        folder: for its scores; the record itself is not written.
        command: that repeats it.
    """
    start = time.perf_counter()
    known = {
        "key": keys.cell,
        "labels": cell.labels,
        "values": cell.values,
        "seed": cell.seed,
        "spec": cell.spec.model_dump(mode="json"),
        "command": command,
    }
    try:
        found = _run(cell, keys, subject, questions, folder)
    except Exception as error:
        found = {"status": "failed", "error": in_words(error)}
        # The trace of what is no surprise is for the file alone.
        expected = isinstance(error, (GraphPruneError, torch.OutOfMemoryError, MemoryError))
        log.log(logging.INFO if expected else logging.ERROR, "%s failed", cell, exc_info=error)
        _let_go(error)
    return CellRecord.model_validate({**known, **found, "seconds": time.perf_counter() - start})


def in_words(error: BaseException) -> str:
    """The kind of an error and its message."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _run(cell: Cell, keys: Keys, subject: Subject, questions: Questions, folder: ResultsFolder) -> dict[str, object]:
    text, graph = subject.text(cell.spec), subject.graph(cell.spec)
    file = Path(SCORES, f"{keys.scores or keys.cell}.safetensors")
    scores, stage = _at_hand(folder.path / file) if keys.scores else (None, None)
    result = prune(
        subject.source,
        cell.spec,
        train_data=text.of_seed(cell.seed),
        evaluation=text.evaluation,
        graph=graph,
        scores=scores,
        progress=False,
    )
    if scores is None:
        computed = next((s for s in result.report.stages if s.name == _SCORE), None)
        write_scores(folder.path / file, result.scores, computed)
    judged = evaluate(result.model, subject.tokenizer, questions, name=subject.label)
    return {
        "report": _with_stage(result.report, stage),
        "evaluation": judged,
        "segments": {name: result.losses[n].values for name, n in _LOSSES.items() if n in result.losses},
        "groups": _groups(cell, result),
        "events": tuple(EventRecord(**vars(event)) for event in result.events),
        "log": tuple({k: float(v) for k, v in line.items()} for line in result.log),
        "scores": file.as_posix(),
    }


def _at_hand(file: Path) -> tuple[dict[str, torch.Tensor] | None, Stage | None]:
    """Scores that another cell has computed, and what that took."""
    if not file.is_file():
        return None, None
    try:
        return read_scores_and_stage(file)
    except CheckpointError as error:
        log.warning("%s; they are computed again", error)
        return None, None


def _with_stage(report: Report, stage: Stage | None) -> Report:
    """The report of a run with scores at hand, as if it had computed them: what scoring took is told in every cell."""
    if stage is None:
        return report
    return report.model_copy(update={"stages": tuple(stage if s.name == _RANK else s for s in report.stages)})


def _groups(cell: Cell, result: PruneResult) -> dict[str, GroupRecord]:
    graph, removed = result.graph, result.plan.removed
    chosen = {g.name for target in resolve_targets(cell.spec, graph) for g in target.groups}
    return {
        g.name: GroupRecord(role=g.role, layer=g.layer, size=g.size, removed=removed.get(g.name, ()))
        for g in graph
        if g.name in chosen
    }


def _let_go(error: BaseException) -> None:
    """Frees what the frames of a failed run hold, so that the next cell has room."""
    error.__traceback__ = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
