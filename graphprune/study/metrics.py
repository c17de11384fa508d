"""What settings are judged by: perplexities and accuracies of cells, and of the models as they came."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphprune.evaluate.evaluation import Evaluation
from graphprune.study.records import CellRecord
from graphprune.study.results import Results
from graphprune.study.verdicts import Runs

Segments = Callable[[CellRecord], Sequence[float] | None]


@dataclass(frozen=True)
class Metric:
    """A number that every result has.

    Attributes:
        column: its name in the table.
        label: in words, without capitals.
        value: of a cell; NaN where it failed or was not measured.
        dense: of the models as they came, by label.
        segments: of a cell: losses by segment, where they are known.
        ratio: whether values are compared by their ratio.
        lower: whether lower is better.
    """

    column: str
    label: str
    value: Callable[[CellRecord], float]
    dense: Mapping[str, float] = field(default_factory=dict)
    segments: Segments | None = None
    ratio: bool = True
    lower: bool = True

    def runs(self, cells: Sequence[CellRecord]) -> Runs:
        """The cells of one setting, by seed."""
        losses = {}
        if self.segments is not None:
            losses = {c.seed: kept for c in cells if c.status == "done" and (kept := self.segments(c))}
        return Runs({c.seed: self.value(c) for c in cells}, losses or None, self.ratio, self.lower)

    def show(self, value: float) -> str:
        """A value as text, such as 5.49 or 61.2 %."""
        if not math.isfinite(value):
            return "–" if math.isnan(value) else "∞"
        if not self.ratio:
            return f"{100 * value:.1f} %"
        return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def metrics(results: Results) -> tuple[Metric, ...]:
    """Everything that is known of at least one cell, what matters most first."""
    perplexity = dense_perplexity(results)
    found = [
        Metric("perplexity_final", "perplexity", final_perplexity, perplexity, _final_segments),
        Metric("perplexity_pruned", "perplexity before tuning", _untuned, perplexity, _kept("pruned")),
    ]
    of_dense = {record.model: record.evaluation for record in results.dense}
    texts = dict.fromkeys(t for c in results.cells if c.evaluation for t in c.evaluation.perplexity)
    for text in texts:
        dense = {model: e.perplexity[text] for model, e in of_dense.items() if text in e.perplexity}
        found.append(Metric(f"perplexity[{text}]", f"perplexity on {Path(text).name}", _on_text(text), dense))
    tasks = dict.fromkeys(t for c in results.cells if c.evaluation for t in c.evaluation.tasks)
    for task in tasks:
        dense = {model: _accuracy(e, task) for model, e in of_dense.items()}
        found.append(_task(f"accuracy[{task}]", f"accuracy on {task_name(task)}", (task,), dense))
    if len(tasks) > 1:
        dense = {model: _mean(_accuracy(e, task) for task in tasks) for model, e in of_dense.items()}
        found.append(_task("accuracy_mean", "mean accuracy over tasks", tuple(tasks), dense))
    return tuple(m for m in found if any(math.isfinite(m.value(cell)) for cell in results.cells))


def final_perplexity(cell: CellRecord) -> float:
    """Of what was written: after training where there was any, else after pruning; NaN if unknown."""
    report = cell.report
    if report is None or cell.status == "failed":
        return math.nan
    return _number(report.perplexity_pruned if report.perplexity_tuned is None else report.perplexity_tuned)


def dense_perplexity(results: Results) -> dict[str, float]:
    """Of every model as it came, on the evaluation text of the runs."""
    found: dict[str, float] = {}
    for cell in results.cells:
        if cell.report is not None and cell.report.perplexity_before is not None:
            found.setdefault(cell.labels.get("model", ""), cell.report.perplexity_before)
    return found


def task_name(task: str) -> str:
    """A task without its folder: ``arc_easy`` for ``arc_easy=/data/arc.jsonl``."""
    return Path(task.partition("=")[0]).stem


def _untuned(cell: CellRecord) -> float:
    """Only where there is a difference to the final one."""
    report = cell.report
    if report is None or cell.status == "failed" or report.perplexity_tuned is None:
        return math.nan
    return _number(report.perplexity_pruned)


def _final_segments(cell: CellRecord) -> Sequence[float] | None:
    tuned = cell.report is not None and cell.report.perplexity_tuned is not None
    return cell.segments.get("tuned" if tuned else "pruned")


def _kept(stage: str) -> Segments:
    return lambda cell: cell.segments.get(stage)


def _on_text(text: str) -> Callable[[CellRecord], float]:
    def value(cell: CellRecord) -> float:
        known = cell.evaluation is not None and cell.status == "done"
        return _number(cell.evaluation.perplexity.get(text) if known and cell.evaluation else None)

    return value


def _task(column: str, label: str, tasks: tuple[str, ...], dense: Mapping[str, float]) -> Metric:
    def value(cell: CellRecord) -> float:
        if cell.evaluation is None or cell.status == "failed":
            return math.nan
        evaluation = cell.evaluation
        return _mean(_accuracy(evaluation, task) for task in tasks)

    return Metric(column, label, value, dense, ratio=False, lower=False)


def _accuracy(evaluation: Evaluation, task: str) -> float:
    score = evaluation.tasks.get(task)
    return math.nan if score is None or not score.metrics else score.metrics[score.headline]


def _mean(values: Iterable[float]) -> float:
    """NaN as soon as one is missing: a mean over other tasks is another number."""
    known = list(values)
    return sum(known) / len(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else value
