"""Everything about a study that can be refused before anything is computed, at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graphprune import validate
from graphprune.checkpoint.structure import structure
from graphprune.declare import declare
from graphprune.engine.modes import needs_data
from graphprune.engine.original import Source
from graphprune.engine.prepare import check_purpose, positions
from graphprune.engine.quantise import check_available
from graphprune.errors import GraphPruneError, SpecError
from graphprune.evaluate import Questions
from graphprune.evaluate.corpora import read_corpus
from graphprune.evaluate.tasks import check_data
from graphprune.export.fit import fit
from graphprune.forecast import check_length
from graphprune.graph import DependencyGraph
from graphprune.schema import PruneSpec
from graphprune.study.grid import Cell, Grid
from graphprune.trace import trace


@dataclass(frozen=True)
class _Structure:
    """A model without weights."""

    source: Source
    model: Any
    graph: DependencyGraph


def check_grid(grid: Grid, models: Mapping[str, Source], *, given: bool) -> None:
    """Holds every cell against the structure of its model, without weights.

    Args:
        grid: the cells.
        models: by label.
        given: whether text to train on was given beside the study.

    Raises:
        SpecError: listing every problem, each once, with the cells that have it.
    """
    problems: list[str] = []
    for label, source in models.items():
        found = _structure(label, source)
        if isinstance(found, str):
            problems.append(found)
        else:
            cells = [cell for cell in grid.cells if cell.model == label]
            problems += grid.told(_problems(cells, found, given=given))
            problems += [f"model {label}: {problem}" for problem in _unreadable(grid.study.measure, found.model)]
    if problems:
        raise SpecError(problems, grid.file.name)


def check_questions(questions: Questions, source: str = "study") -> None:
    """Looks for the texts and tasks that are to be measured, and reads them where they are not local.

    Raises:
        SpecError: naming all that cannot be reached, with the local alternative.
        MissingExtraError: tasks are asked for and lm-eval is not installed.
    """
    problems = [p for text in questions.texts for p in _said(lambda text=text: read_corpus(text))]  # type: ignore[misc]
    problems = [f"measure.texts: {problem}" for problem in problems]
    if questions.tasks:
        problems += [f"measure.tasks: {problem}" for problem in check_data(questions.tasks)]
    if problems:
        raise SpecError(problems, source)


def _unreadable(questions: Questions, model: Any) -> list[str]:
    """What is to be measured with more tokens than the model reads at once."""
    most = positions(model)
    if most is None:
        return []
    problems = []
    if questions.texts and questions.length is not None and questions.length > most:
        problems.append(f"measure.length: expected at most {most}, the positions it knows, got {questions.length}")
    if questions.latency and questions.new_tokens >= most:
        problems.append(
            f"measure.new_tokens: expected fewer than {most}, the positions it knows, with room for a prompt"
        )
    return problems


def _structure(label: str, source: Source) -> _Structure | str:
    try:
        model = structure(source.name, task=source.task, trust_remote_code=source.trust_remote_code)
        return _Structure(source, model, trace(model))
    except GraphPruneError as error:
        return f"model {label}: {error}"


def _problems(cells: Iterable[Cell], of: _Structure, *, given: bool) -> dict[str, list[Cell]]:
    """What is wrong, and with which cells."""
    met: dict[str, list[str]] = {}
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        problems = []
        for sections, look in _LOOKS:
            asked = json.dumps([look.__name__, cell.spec.model_dump(mode="json", include=sections)], sort_keys=True)
            if asked not in met:
                met[asked] = _said(lambda look=look, spec=cell.spec: look(spec, of))  # type: ignore[misc]
            problems += met[asked]
        if needs_data(cell.spec) and cell.spec.data is None and not given:
            problems.append("needs text to train or calibrate on, got none: name it under 'data', or give --text FILE")
        for problem in dict.fromkeys(problems):
            found.setdefault(problem, []).append(cell)
    return found


def _said(look: Callable[[], object]) -> list[str]:
    try:
        look()
    except SpecError as error:
        return list(error.problems)
    except GraphPruneError as error:
        return [str(error)]
    return []


def _fits_model(spec: PruneSpec, of: _Structure) -> None:
    validate.check(spec, declare(of.graph, spec, of.model))


def _fits_export(spec: PruneSpec, of: _Structure) -> None:
    graph = declare(of.graph, spec, of.model)
    validate.resolve_targets(spec, graph)
    fit(spec, graph, of.model)


def _fits_purpose(spec: PruneSpec, of: _Structure) -> None:
    check_purpose(of.model, spec)
    check_length(of.model, spec)


def _fits_device(spec: PruneSpec, of: _Structure) -> None:
    if spec.quantization is not None and of.source.device is not None:
        check_available(spec.quantization, of.source.device)


#: What is looked at, and the parts of a spec that it depends on: most cells share them.
_LOOKS: tuple[tuple[set[str], Callable[[PruneSpec, _Structure], None]], ...] = (
    ({"targets", "groups", "scope", "criterion", "quantization"}, _fits_model),
    ({"targets", "groups", "scope", "export"}, _fits_export),
    ({"criterion", "training", "data"}, _fits_purpose),
    ({"quantization"}, _fits_device),
)
