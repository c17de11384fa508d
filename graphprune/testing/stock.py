"""Of how many architectures a uniformly pruned model loads with stock ``from_pretrained``, and why others do not.

``python -m graphprune.testing.stock`` asks every case and writes the table and the raw results;
``python -m graphprune.testing.stock CASE ...`` asks these cases and prints them.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from graphprune import ranking
from graphprune.checkpoint import save
from graphprune.errors import SpecError, TraceError
from graphprune.export.fit import fit
from graphprune.graph import DependencyGraph
from graphprune.prove.subject import distance, logits_of, magnitude, told, twin
from graphprune.reshape import reshape
from graphprune.reshape.config import quiet
from graphprune.reshape.history import history_of
from graphprune.schema import PruneSpec
from graphprune.tasks import loader_name
from graphprune.testing.apart import FailedError, apart, each
from graphprune.testing.models import example_inputs, tiny_model
from graphprune.testing.stock_results import StockResult, StockRow, read_stock, write_stock
from graphprune.testing.stock_table import TOGETHER, render
from graphprune.testing.zoo import cases
from graphprune.trace import trace

KINDS: dict[str, tuple[str, ...]] = {
    "heads": ("attention.group",),
    "query heads": ("attention.query",),
    "channels": ("mlp.channel", "moe.channel"),
    "experts": ("moe.expert",),
    "expert channels": ("moe.channel",),
    "layers": ("layer",),
}
"""What is pruned at once, and the roles of its groups; all of them together come last."""
SHARE = 0.25
"""Of the units of every group; one unit at least."""
LIMIT = 240.0
"""Seconds for one case."""
TOLERANCE = 1e-4
"""How far logits may be apart, as a fraction of the largest one."""

_ERRORS = Console(stderr=True)


def measure(case: str) -> StockResult:
    """Prunes one tiny model evenly, kind by kind and all kinds at once, and loads what a stock config can describe."""
    model = tiny_model(case)
    inputs = example_inputs(model)
    try:
        graph = trace(model)
    except TraceError:  # inputs of its own
        graph = trace(model, example_inputs=inputs)
    present = {kind: [r for r in roles if graph.select(role=r)] for kind, roles in KINDS.items()}
    present = {kind: roles for kind, roles in present.items() if roles}
    if len(present) > 1:
        present[TOGETHER] = list(dict.fromkeys(role for roles in present.values() for role in roles))
    rows = (_row(model, graph, inputs, kind, roles) for kind, roles in present.items())
    return StockResult(case=case, rows=tuple(row for row in rows if row is not None))


def _row(
    model: PreTrainedModel, graph: DependencyGraph, inputs: dict[str, Tensor], kind: str, roles: Sequence[str]
) -> StockRow | None:
    """None where there is no unit to spare."""
    targets = [t for role in roles if (t := _target(graph, role)) is not None]
    if not targets:
        return None
    spec = PruneSpec.model_validate({"targets": targets, "criterion": "magnitude", "export": {"targets": "hf"}})
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in graph}
    wanted = _sizes(ranking.plan(graph, spec, scores).sizes_after(), graph, roles)
    try:
        fitted = fit(spec, graph, model)
    except SpecError as error:
        told_why = re.search(r"\(hf: (.*)\)\. Ask for", error.problems[0])
        return StockRow(kind=kind, asked=wanted, reason=told_why[1] if told_why else error.problems[0])
    plan = ranking.plan(graph, fitted.spec, scores, limits=fitted.limits)
    small = reshape(twin(model), plan, graph)
    kept = _sizes(plan.sizes_after(), graph, roles)
    history = history_of(small)
    if not history.stock:
        return StockRow(kind=kind, asked=wanted, kept=kept, loads=False, reason=history.why_not)
    stand_in = history.stand_in.architecture if history.stand_in else ""
    problem = _differs(small, inputs)
    return StockRow(kind=kind, asked=wanted, kept=kept, stand_in=stand_in, loads=not problem, reason=problem)


def _target(graph: DependencyGraph, role: str) -> dict[str, Any] | None:
    groups = graph.select(role=role).groups
    for amount in ({"ratio": SHARE}, {"count": 1}):
        spec = PruneSpec.model_validate({"targets": [{"role": role, **amount}]})
        plan = ranking.plan(graph, spec, {g.name: torch.zeros(g.size) for g in graph})
        if all(plan.removed.get(g.name) for g in groups if g.minimum < g.size) and plan.removed:
            return {"role": role, **amount}
    return None


def _sizes(after: dict[str, int], graph: DependencyGraph, roles: Sequence[str]) -> str:
    """``12 of 16 mlp.channel``, every size once."""
    found = {f"{after[g.name]} of {g.size} {role}": None for role in roles for g in graph.select(role=role)}
    return ", ".join(found)


def _differs(small: Any, inputs: dict[str, Tensor]) -> str:
    """How what a stock loader makes of the folder differs; empty if it does not."""
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad(), quiet():
        folder = save(small, Path(temporary) / "model")
        loader = getattr(transformers, loader_name(type(small).__name__, small.config.model_type))
        try:
            stock, info = loader.from_pretrained(folder, output_loading_info=True)
            mine, theirs = logits_of(small, inputs), logits_of(stock.eval(), inputs)
        except Exception as error:  # noqa: BLE001 - whatever loading or running raises
            return told(error)
        problems = {key: sorted(map(str, found)) for key, found in info.items() if found}
        if problems:
            return f"loads with {problems}"
        apart_by = distance(mine, theirs)
        return "" if apart_by <= TOLERANCE * magnitude(mine) else f"gives other logits, by {apart_by:.2g}"


def measured_apart(case: str) -> StockResult:
    """:func:`measure` in a process of its own."""
    try:
        return StockResult.model_validate_json(apart(lambda: _told(case).model_dump_json(), LIMIT))
    except FailedError as error:
        return StockResult(case=case, failure=str(error))


def _told(case: str) -> StockResult:
    try:
        return measure(case)
    except Exception as error:  # noqa: BLE001 - a case that fails is a row of the table
        return StockResult(case=case, failure=told(error))


def measure_all(names: Sequence[str], known: Iterable[StockResult], jobs: int) -> Iterator[StockResult]:
    """One result per name, in order; those in ``known`` are taken from there."""
    return each(names, {r.case: r for r in known}, measured_apart, jobs)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m graphprune.testing.stock", description=__doc__)
    parser.add_argument("cases", nargs="*", help="cases to ask and print; all of them, into files, without")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--keep", action="store_true", help="ask only cases that have no result yet")
    parser.add_argument("--out", type=Path, default=Path("docs/stock.md"))
    parser.add_argument("--raw", type=Path, default=Path("benchmarks/results/stock.json"))
    options = parser.parse_args(arguments)
    if options.cases:
        for result in measure_all(options.cases, (), options.jobs):
            print("\n  ".join([f"{result.case}: {result.failure}", *map(str, result.rows)]))  # noqa: T201
        return
    known = {r.case: r for r in read_stock(options.raw)} if options.keep else {}
    names = cases()
    for result in track(measure_all(names, tuple(known.values()), options.jobs), "asking", len(names), console=_ERRORS):
        known[result.case] = result
        write_stock(options.raw, [known[name] for name in names if name in known])
    options.out.write_text(render([known[name] for name in names]), encoding="utf-8")


if __name__ == "__main__":
    main()
