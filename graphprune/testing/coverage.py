"""What of every architecture is found, pruned, proved, saved and generated from: the coverage table.

``python -m graphprune.testing.coverage`` measures every case that is not up to date, and writes the table and the raw
results; ``python -m graphprune.testing.coverage CASE ...`` measures these cases and prints them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import track

import graphprune
from graphprune.errors import TraceError
from graphprune.prove import prove
from graphprune.testing.apart import FailedError, apart, each
from graphprune.testing.models import example_inputs, tiny_model
from graphprune.testing.parts import parts_of
from graphprune.testing.results import Result, read_results, write_results
from graphprune.testing.table import render
from graphprune.testing.zoo import cases
from graphprune.trace import trace

LIMIT = 120.0
"""Seconds for one case."""
RELOADED = frozenset({"layer", "together"})
"""The roles of which copies are saved and loaded: finding their configs takes longer than all the rest."""
SOURCES = (
    "trace",
    "reshape",
    "prove",
    "checkpoint",
    "testing",
    "declare",
    "graph.py",
    "masking.py",
    "plan.py",
    "specs/architectures",
)
"""What results depend on, below the package."""
RENDERING = ("table.py", "remedies.py", "coverage.py", "results.py")
"""What they do not depend on although it lies there."""

_ERRORS = Console(stderr=True)


def measure(case: str, reload: frozenset[str] = RELOADED) -> Result:
    """Traces, prunes, proves, saves, loads and generates from one tiny model.

    ``reload`` names the roles of which a cut copy is saved and loaded.
    """
    sources, start = fingerprint(), time.perf_counter()
    try:
        model = tiny_model(case)
        inputs = example_inputs(model)
        traced = time.perf_counter()
        try:
            graph = trace(model)
        except TraceError:  # inputs of its own
            graph = trace(model, example_inputs=inputs)
        seconds = time.perf_counter() - traced
        parts = parts_of(model, graph, inputs)
        proof = prove(model, graph, inputs=inputs, generate=True, reload=reload)
    except Exception as error:  # noqa: BLE001 - a case that fails is a row of the table
        return Result(case=case, sources=sources, failure=f"{type(error).__name__}: {error}")
    return Result(
        case=case,
        sources=sources,
        seconds=round(seconds, 2),
        total=round(time.perf_counter() - start, 1),
        notes=graph.notes,
        rows=proof.rows,
        parts=parts,
    )


@functools.cache
def fingerprint() -> str:
    """A hash of everything that results depend on, the versions of torch and transformers included."""
    root = Path(graphprune.__file__).parent
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for part in SOURCES:
        files = [root / part] if part.endswith(".py") else sorted((root / part).rglob("*"))
        for file in files:
            if file.suffix in (".py", ".yaml") and not (part == "testing" and file.name in RENDERING):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def measured_apart(case: str) -> Result:
    """:func:`measure` in a process of its own."""
    try:
        return Result.model_validate_json(apart(lambda: measure(case).model_dump_json(), LIMIT))
    except FailedError as error:
        return Result(case=case, sources=fingerprint(), failure=str(error))


def measure_all(names: Sequence[str], known: Iterable[Result], jobs: int) -> Iterator[Result]:
    """One result per name, in order; those in ``known`` that are up to date are taken from there."""
    sources = fingerprint()
    return each(names, {r.case: r for r in known if r.sources == sources}, measured_apart, jobs)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m graphprune.testing.coverage", description=__doc__)
    parser.add_argument("cases", nargs="*", help="cases to measure and print; all of them, into files, without")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--out", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--raw", type=Path, default=Path("benchmarks/results/coverage.json"))
    options = parser.parse_args(arguments)
    if options.cases:
        for result in measure_all(options.cases, (), options.jobs):
            _print(result)
        return
    _update(options.raw, options.jobs)
    options.out.write_text(render(read_results(options.raw)), encoding="utf-8")


def _print(result: Result) -> None:
    lines = [f"{result.case}: traced in {result.seconds} s {result.failure}", *result.notes, *result.rows]
    lines += [f"MISSING {p.part}: {p.role}: {p.prunable} of {p.count}" for p in result.parts if p.prunable < p.count]
    print("\n  ".join(map(str, lines)))  # noqa: T201


def _update(raw: Path, jobs: int) -> None:
    """Measures what is not up to date; what is measured is kept at once, so that a run can be interrupted."""
    known = {r.case: r for r in read_results(raw)}
    names = cases()
    for result in track(measure_all(names, tuple(known.values()), jobs), "measuring", len(names), console=_ERRORS):
        known[result.case] = result
        write_results(raw, (known[name] for name in names if name in known))


if __name__ == "__main__":
    main()
