"""Results as tidy tables: a row per cell, and a row per setting with its interval and verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphprune.errors import MissingExtraError
from graphprune.evaluate.evaluation import Evaluation
from graphprune.evaluate.latency import Latency
from graphprune.report.measures import Measures
from graphprune.report.report import Report
from graphprune.study.findings import Findings
from graphprune.study.metrics import final_perplexity
from graphprune.study.records import CellRecord
from graphprune.study.results import Results

if TYPE_CHECKING:
    import pandas as pd

_SIZES = ("parameters", "weight_bytes", "macs", "cache_bytes_per_token")


def frame(results: Results) -> pd.DataFrame:
    """A row per cell, in the order of the grid; what failed has its row, its reason and no numbers.

    Columns: ``key``; one per axis with its label, and ``AXIS_value`` with its number where it has one; ``seed``,
    ``status``, ``error``; ``perplexity_dense``, ``_pruned``, ``_tuned`` and ``_final`` (tuned where there was training,
    else pruned); ``perplexity[TEXT]`` and ``METRIC[TASK]`` of the evaluation, with ``dense …`` of the model as it came;
    ``parameters``, ``weight_bytes``, ``macs`` and ``cache_bytes_per_token``, each ``_before`` and ``_after``;
    ``prefill_seconds`` and ``decode_seconds`` (per token), ``…_unmerged`` with adapters beside the weights;
    ``seconds_STAGE`` of the run's stages and ``seconds_total``; ``peak_rss_bytes`` and ``peak_device_bytes``, the
    largest over the stages; ``training_steps``; ``units_removed``; ``command``.

    Raises:
        MissingExtraError: if pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError("pandas", "report", "a table of a study") from None
    dense = {record.model: record.evaluation for record in results.dense}
    rows = [_row(cell, dense.get(cell.labels.get("model", ""))) for cell in results.cells]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    order = sorted(columns, key=_section)
    return pd.DataFrame(rows, columns=order)


def summary(findings: Findings) -> pd.DataFrame:
    """A row per metric, place and setting: mean over seeds, Student's interval, and the comparison with the best.

    Columns: ``metric``; the axes; ``seeds``, ``mean``, ``low``, ``high``, ``smallest``, ``largest``; ``rank``;
    ``effect`` against the best (ratio of perplexities, difference of accuracies) with both intervals, ``p``,
    ``p_holm`` and ``verdict``: ``best``, ``tie``, ``worse``, ``better`` (than one with more seeds) or ``none``.

    Raises:
        MissingExtraError: if pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError("pandas", "report", "a table of a study") from None
    layout, rows = findings.layout, []
    for metric in findings.metrics:
        for place in findings.places:
            found = findings.standing(metric, place)
            for rank, (setting, estimate) in enumerate(found.estimates.items(), start=1):
                row: dict[str, Any] = {"metric": metric.column, **dict(zip(layout.rest, place.facet, strict=True))}
                row |= {layout.across: place.point} if layout.across else {}
                low, high = estimate.interval or (math.nan, math.nan)
                row |= {layout.series: setting, "seeds": estimate.seeds, "mean": estimate.mean, "low": low}
                row |= {"high": high, "smallest": estimate.smallest, "largest": estimate.largest, "rank": rank}
                other = found.comparisons.get(setting)
                if other is None:
                    row |= {"verdict": "best" if found.decided else "none"}
                else:
                    student, bootstrap = other.student or (math.nan,) * 2, other.bootstrap or (math.nan,) * 2
                    row |= {"effect": other.effect, "student_low": student[0], "student_high": student[1]}
                    row |= {"bootstrap_low": bootstrap[0], "bootstrap_high": bootstrap[1]}
                    row |= {"p": other.p, "p_holm": other.p_holm, "verdict": other.verdict}
                rows.append(row)
    return pd.DataFrame(rows)


def write_tables(findings: Findings, folder: Path) -> None:
    """Writes ``results.csv``, ``results.parquet`` and ``summary.csv`` into ``folder``.

    Raises:
        MissingExtraError: if pandas or pyarrow is not installed.
    """
    table = frame(findings.results)
    try:
        table.to_parquet(folder / "results.parquet", index=False)
    except ImportError:
        raise MissingExtraError("pyarrow", "report", "writing results.parquet") from None
    table.to_csv(folder / "results.csv", index=False, na_rep="NaN")
    summary(findings.judging).to_csv(folder / "summary.csv", index=False, na_rep="NaN")


def _row(cell: CellRecord, dense: Evaluation | None) -> dict[str, Any]:
    row: dict[str, Any] = {"key": cell.key, **cell.labels}
    row |= {f"{axis}_value": value for axis, value in cell.values.items()}
    row |= {"seed": cell.seed, "status": cell.status, "error": cell.error}
    if cell.report is not None:
        row |= _of_report(cell.report)
    row["perplexity_final"] = final_perplexity(cell)
    row |= _of_evaluation(cell.evaluation, "")
    row |= {name: value for name, value in _of_evaluation(dense, "dense ").items() if cell.evaluation is not None}
    row |= {"seconds_total": cell.seconds, "units_removed": sum(len(g.removed) for g in cell.groups.values())}
    if cell.status == "failed":
        row["units_removed"] = None
    row["command"] = cell.command
    return row


def _of_report(report: Report) -> dict[str, Any]:
    row: dict[str, Any] = {
        "perplexity_dense": report.perplexity_before,
        "perplexity_pruned": report.perplexity_pruned,
        "perplexity_tuned": report.perplexity_tuned,
    }
    for when, sizes in (("before", report.before), ("after", report.after)):
        row |= {f"{name}_{when}": value for name, value in _sizes(sizes).items()}
    for stage in report.stages:
        column = f"seconds_{stage.name.replace(' ', '_')}"
        row[column] = row.get(column, 0.0) + stage.seconds
    row["peak_rss_bytes"] = max((s.peak_rss_bytes for s in report.stages), default=None)
    on_device = [s.peak_device_bytes for s in report.stages if s.peak_device_bytes is not None]
    row["peak_device_bytes"] = max(on_device, default=None)
    training = report.spec.get("training", {})
    if report.perplexity_tuned is not None or "seconds_train" in row:
        row["training_steps"] = training.get("steps")
    return row


def _sizes(sizes: Measures) -> dict[str, float | None]:
    return {name: getattr(sizes, name) for name in _SIZES}


def _of_evaluation(evaluation: Evaluation | None, prefix: str) -> dict[str, Any]:
    if evaluation is None:
        return {}
    row: dict[str, Any] = {f"perplexity[{text}]": value for text, value in evaluation.perplexity.items()}
    for task, score in evaluation.tasks.items():
        row |= {f"{name}[{task}]": value for name, value in score.metrics.items()}
    row |= _latency(evaluation.latency, "") | _latency(evaluation.latency_unmerged, "_unmerged")
    return {prefix + name: value for name, value in row.items()}


def _latency(latency: Latency | None, suffix: str) -> dict[str, float | None]:
    if latency is None:
        return {}
    decode = None if latency.decode is None else latency.decode.median
    return {f"prefill_seconds{suffix}": latency.prefill.median, f"decode_seconds{suffix}": decode}


def _section(column: str) -> int:
    """Columns that only some cells have come beside their like, not at the end."""
    starts = ("seconds_", "peak_", "training_steps", "units_removed", "command")
    return next((rank for rank, start in enumerate(starts, start=1) if column.startswith(start)), 0)
