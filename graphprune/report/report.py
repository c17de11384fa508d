"""The report of a run: a value with everything in it, written as JSON for machines and Markdown for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from graphprune.errors import CheckpointError
from graphprune.report.measures import Measures
from graphprune.report.stages import Stage


class Report(BaseModel):
    """What was done to a model, what it cost and what it gained.

    Attributes:
        model: the name or folder of the model that was pruned.
        before: its measures.
        after: the pruned model's.
        perplexity_before: of the model as it came, on the evaluation text.
        perplexity_pruned: after pruning, before any recovery.
        perplexity_tuned: of what was written, where it was trained.
        evaluation: which text, and in segments of how many tokens.
        stages: time and peak memory.
        spec: the whole spec, defaults included.
        plan: removed and total units per role, in the targets and in the model (:meth:`graphprune.PrunePlan.summary`).
        versions: of Python, graphprune and what it builds on.
        seed: that the run was started with.
        data_fingerprint: a hash of the training text.
        spec_fingerprint: a hash of what the spec says about the result; paths of text and the like do not count.
        graph_fingerprint: that of the dependency graph of the model as it came.
        tier: ``hf``, ``hf-remote-code`` or ``graphprune``: how the result loads.
        load: the line of code that loads it.
        notes: adjustments to what was asked, numbers that are missing, reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format: int = 1
    model: str
    before: Measures
    after: Measures
    perplexity_before: float | None = None
    perplexity_pruned: float | None = None
    perplexity_tuned: float | None = None
    evaluation: str = ""
    stages: tuple[Stage, ...] = ()
    spec: dict[str, Any] = {}
    plan: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seed: int | None = None
    data_fingerprint: str = ""
    spec_fingerprint: str = ""
    graph_fingerprint: str = ""
    tier: str = ""
    load: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The report as JSON, complete: :meth:`read` gives an equal one."""
        return self.model_dump_json(indent=1) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown tables."""
        parts = [
            f"# Pruning report: {self.model}",
            f"```python\n{self.load}\n```" if self.load else "",
            _table(("", "before", "after", "kept"), self._size_rows()),
            self._quality(),
            _section("What was removed", _table(_PLAN_HEAD, self._plan_rows())),
            _section("Stages", _table(("stage", "time", "peak memory", "peak on device"), self._stage_rows())),
            _section("Notes", "\n".join(f"- {note}" for note in self._all_notes())),
            _section("Reproduce", _table(("", ""), self._origin_rows())),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def save(self, folder: Path) -> None:
        """Writes ``report.json`` and ``report.md`` into ``folder``."""
        (folder / "report.json").write_text(self.to_json(), encoding="utf-8")
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Report:
        """Reads a ``report.json``.

        Raises:
            CheckpointError: if it is missing or no report.
        """
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise CheckpointError(f"{file} is no report: {error}") from None

    def _size_rows(self) -> list[Sequence[str]]:
        length = self.after.sequence_length
        rows = [
            ("parameters", self.before.parameters, self.after.parameters, _count),
            ("weights", self.before.weight_bytes, self.after.weight_bytes, _bytes),
            (f"MACs, {length} tokens", self.before.macs, self.after.macs, _count),
            ("KV cache per token", self.before.cache_bytes_per_token, self.after.cache_bytes_per_token, _bytes),
        ]
        return [
            (name, show(old), show(new), f"{new / old:.1%}" if old else "–")
            for name, old, new, show in rows
            if old is not None and new is not None
        ]

    def _quality(self) -> str:
        given = {
            "before": self.perplexity_before,
            "pruned": self.perplexity_pruned,
            "tuned": self.perplexity_tuned,
        }
        known = {name: value for name, value in given.items() if value is not None}
        if not known:
            return ""
        table = _table(("perplexity", *known), [("", *(f"{value:.2f}" for value in known.values()))])
        return f"{table}\n\n{self.evaluation}" if self.evaluation else table

    def _plan_rows(self) -> list[Sequence[str]]:
        """Per role, of what was to be pruned and of all there is; last, what this is of all parameters."""
        rows = [
            (role, f"{row['groups']}", _part(row["removed"], row["of"]), f"{row['of']}", *_in_model(row))
            for role, row in self.plan.items()
        ]
        before, gone = self.before.parameters, self.before.parameters - self.after.parameters
        total = ("parameters", "", "", "", f"{_count(before)}", f"{gone / before:.1%}" if before else "–")
        return [*rows, total] if rows else []

    def _stage_rows(self) -> list[Sequence[str]]:
        return [
            (
                stage.name,
                _seconds(stage.seconds),
                _bytes(stage.peak_rss_bytes),
                "–" if stage.peak_device_bytes is None else _bytes(stage.peak_device_bytes),
            )
            for stage in self.stages
        ]

    def _all_notes(self) -> list[str]:
        return list(dict.fromkeys([*self.notes, *self.before.notes, *self.after.notes]))

    def _origin_rows(self) -> Sequence[Sequence[str]]:
        hashes = [
            ("spec", self.spec_fingerprint),
            ("training text", self.data_fingerprint),
            ("dependency graph", self.graph_fingerprint),
        ]
        rows = [("seed", self.seed), *hashes, ("tier", self.tier)]
        return [(name, str(value)) for name, value in rows if value not in (None, "")] + [*self.versions.items()]


_PLAN_HEAD = ("role", "groups", "units removed", "of", "in the model", "removed")


def _part(removed: int, total: int) -> str:
    return f"{removed} ({removed / total:.0%})"


def _in_model(row: dict[str, Any]) -> tuple[str, str]:
    """Reports written by older versions do not say."""
    return (f"{row['all_of']}", f"{row['all_ratio']:.1%}") if "all_of" in row else ("–", "–")


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded so that it reads well as plain text; numbers to the right."""
    if not rows:
        return ""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _count(value: float) -> str:
    """1234567 → 1.23 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    """1536 → 1.5 KiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.1f} {unit}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    """93.4 → 1 min 33 s."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
