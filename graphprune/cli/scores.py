"""Evaluations in the terminal: one column per model, and how the others compare with the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from graphprune.evaluate import Evaluation, Latency


def print_evaluations(evaluations: Sequence[Evaluation], console: Console) -> None:
    """Prints a table, and below it what its numbers are for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", overflow="fold")
    for name in _names([e.name for e in evaluations]):
        table.add_column(name, justify="right", overflow="fold")
    for label, values, digits in _rows(evaluations):
        table.add_row(label, *_cells(values, digits))
    console.print(table)
    first = evaluations[0]
    console.print(
        f"{first.dtype} on {first.device}; operations and cache of {first.size.sequence_length} tokens. "
        "In brackets: relative to the first model."
        if len(evaluations) > 1
        else f"{first.dtype} on {first.device}; operations and cache of {first.size.sequence_length} tokens."
    )


def _rows(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, list[float | None], int | None]]:
    """Label, one value per model, and the digits after the point (None: a whole number)."""
    first = evaluations[0]
    for text in first.perplexity:
        label = f"perplexity, {_short(text)}, {first.length} tokens"
        yield label, [e.perplexity.get(text) for e in evaluations], 3
    for task, score in first.tasks.items():
        metric = score.headline
        shots = "" if score.few_shot is None else f", {score.few_shot}-shot"
        values = [e.tasks[task].metrics.get(metric) if task in e.tasks else None for e in evaluations]
        yield f"{_short(task)}, {metric}{shots}", [None if v is None else 100 * v for v in values], 2
    yield "parameters", [e.size.parameters for e in evaluations], None
    yield "weights, MiB", [e.size.weight_bytes / 2**20 for e in evaluations], 1
    yield "operations, million MACs", [None if e.size.macs is None else e.size.macs / 1e6 for e in evaluations], 1
    yield "cache, bytes per token", [e.size.cache_bytes_per_token for e in evaluations], None
    if any(e.peak_bytes for e in evaluations):
        yield "peak memory, MiB", [None if e.peak_bytes is None else e.peak_bytes / 2**20 for e in evaluations], 1
    for suffix, timed in (
        ("", [e.latency for e in evaluations]),
        (", adapters unmerged", [e.latency_unmerged for e in evaluations]),
    ):
        yield from _times(suffix, timed)


def _times(suffix: str, timed: Sequence[Latency | None]) -> Iterator[tuple[str, list[float | None], int]]:
    known = next((t for t in timed if t is not None), None)
    if known is None:
        return
    yield (
        f"reading {known.prompt_tokens} tokens, ms{suffix}",
        [None if t is None else 1000 * t.prefill.median for t in timed],
        1,
    )
    written = [None if t is None or t.decode is None else 1000 * t.decode.median for t in timed]
    if any(value is not None for value in written):
        yield f"writing one token, ms{suffix}", written, 2


def _cells(values: Sequence[float | None], digits: int | None) -> Iterator[str]:
    first = values[0]
    for place, value in enumerate(values):
        if value is None:
            yield "-"
            continue
        text = f"{value:,.0f}" if digits is None else f"{value:,.{digits}f}"
        yield text if place == 0 or not first else f"{text} ({value / first:.2f})"


def _names(names: Sequence[str]) -> list[str]:
    """Folders by their last part, where these differ."""
    short = [_short(name) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _short(name: str) -> str:
    return name.partition("=")[0] if "=" in name else Path(name).name
