"""From a study to its cells, each with its whole spec; what contradicts is told at once, with the cells it is about."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from graphprune.errors import SpecError
from graphprune.importance import criteria
from graphprune.inventory import plural
from graphprune.problems import Lines, did_you_mean, problems
from graphprune.schema import PruneSpec
from graphprune.specfile import spec_values
from graphprune.study.axes import Axis, Value, axes_of, in_order, label_of, merged
from graphprune.study.schema import Study
from graphprune.study.studyfile import StudyFile

#: In the place of a spec that is malformed, while its problems are collected.
_NONE = PruneSpec.model_validate({"targets": [{"role": "*", "ratio": 0}]})


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        model: its label.
        labels: by axis, ``model`` first.
        values: of the axes whose value is a number.
        seed: of the run.
        spec: what it does.
    """

    model: str
    labels: dict[str, str]
    values: dict[str, float]
    seed: int
    spec: PruneSpec

    def __str__(self) -> str:
        return ", ".join([f"seed {self.seed}", *self.labels.values()])


@dataclass(frozen=True)
class Grid:
    """All cells of a study: whole seeds one after the other, so that a study broken off has something to tell.

    Attributes:
        file: the study.
        cells: in the order in which they are run.
    """

    file: StudyFile
    cells: tuple[Cell, ...]

    @property
    def study(self) -> Study:
        """What it is the grid of."""
        return self.file.study

    def described(self, cells: Iterable[Cell]) -> str:
        """Some of the cells in words: how many, and what they have in common on which axes."""
        chosen = list(cells)
        if len(chosen) == len(self.cells):
            return "all cells" if len(chosen) > 1 else "the cell"
        parts = []
        for axis in self.cells[0].labels:
            own = dict.fromkeys(c.labels[axis] for c in chosen)
            if len(own) < len({c.labels[axis] for c in self.cells}):
                parts.append(f"{axis} {', '.join(own)}")
        own_seeds = dict.fromkeys(c.seed for c in chosen)
        if len(own_seeds) < len({c.seed for c in self.cells}):
            parts.append(f"seed {', '.join(map(str, own_seeds))}")
        return plural(len(chosen), "cell") + (f" ({'; '.join(parts)})" if parts else "")

    def told(self, found: Mapping[str, Sequence[Cell]]) -> list[str]:
        """Problems, each with the cells that have it."""
        return [f"{self.described(cells)}: {problem}" for problem, cells in found.items()]


def grid(file: StudyFile, models: Iterable[str]) -> Grid:
    """The cells of a study, none of which is run.

    Args:
        file: the study.
        models: their labels.

    Raises:
        SpecError: listing every problem of every cell, each once.
    """
    study, labels = file.study, list(models)
    axes, wrong = axes_of(study)
    if not labels:
        wrong.append("models: expected at least one model, by 'models' in the study or at run time, got none")
    if "seed" in study.spec:
        wrong.append("spec.seed: the seeds of a study are given by 'seeds'; leave it out")
    skipped, unknown = _skips(study, axes, labels)
    base, lines, problem = _base(file)
    wrong += [*unknown, *problem]
    if wrong:
        raise SpecError(wrong, file.name)
    cells: list[Cell] = []
    found: dict[str, list[Cell]] = {}
    made = [(v, *_made(base, axes, v, lines, file.lines)) for v in itertools.product(*(a.values for a in axes))]
    for seed, label, (values, spec, told) in itertools.product(study.seeds, labels, made):
        chosen = {"model": label, **{a.name: v.label for a, v in zip(axes, values, strict=True)}}
        if any(_matches(skip, {**chosen, "seed": str(seed)}) for skip in skipped):
            continue
        numbers = {a.name: v.number for a, v in zip(axes, values, strict=True) if v.number is not None}
        cell = Cell(label, chosen, numbers, seed, _NONE if spec is None else _seeded(spec, seed))
        cells.append(cell)
        for text in told:
            found.setdefault(text, []).append(cell)
    if not cells:
        raise SpecError("skip: leaves no cell at all", file.name)
    whole = Grid(file, tuple(cells))
    if found:
        raise SpecError(whole.told(found), file.name)
    return whole


def _base(file: StudyFile) -> tuple[dict[str, Any], Lines, list[str]]:
    """What all cells share, the lines of its parts that stand in the study file, and what is wrong with it."""
    study = file.study
    below: Any = {}
    if study.base is not None:
        try:
            below, _ = spec_values(study.base)
        except SpecError as error:
            return {}, {}, [f"base: {study.base}: {problem}" for problem in error.problems]
        if not isinstance(below, dict):
            return {}, {}, [f"base: {study.base}: expected a spec, got {label_of(below)}"]
    found = merged(below, study.spec)
    if study.data is not None:
        found["data"] = study.data.model_dump(mode="json", exclude_unset=True)
    return found, {place[1:]: line for place, line in file.lines.items() if place[0] == "spec"}, []


def _made(
    base: dict[str, Any], axes: list[Axis], values: tuple[Value, ...], lines: Lines, all_lines: Lines
) -> tuple[PruneSpec | None, list[str]]:
    """The spec of cells with these values, or what is wrong with it."""
    value_of = dict(zip((a.name for a in axes), values, strict=True))
    spec, where = base, dict(lines)
    for axis in in_order(axes):
        value = value_of[axis.name]
        try:
            spec = axis.laid(spec, value)
            where.update(axis.lines(value, all_lines))
        except ValueError as error:
            return None, [f"{axis.name}: {error}"]
    try:
        return PruneSpec.model_validate(spec), []
    except ValidationError as error:
        return None, problems(error, PruneSpec, spec, where)


def _seeded(spec: PruneSpec, seed: int) -> PruneSpec:
    """The spec with a seed, also of a criterion that is random itself and was not given one of its own."""
    criterion = spec.criterion
    own = criteria.get(criterion.name).options_model.model_fields.get("seed")
    if own is not None and criterion.options.get("seed") == own.default:
        criterion = criterion.model_copy(update={"options": {**criterion.options, "seed": seed}})
    return spec.model_copy(update={"seed": seed, "criterion": criterion})


def _skips(study: Study, axes: list[Axis], models: list[str]) -> tuple[list[dict[str, frozenset[str]]], list[str]]:
    """What to leave out, and which of it does not exist."""
    known = {"model": models, "seed": list(map(str, study.seeds))}
    known |= {a.name: [v.label for v in a.values] for a in axes}
    skipped, wrong = [], []
    for index, given in enumerate(study.skip):
        labels = {}
        for axis, value in given.items():
            if axis not in known:
                wrong.append(f"skip[{index}].{axis}: no such axis.{did_you_mean(axis, list(known))}")
                continue
            labels[axis] = frozenset(map(label_of, value if isinstance(value, (list, tuple)) else (value,)))
            odd = sorted(labels[axis] - set(known[axis])) if axis != "model" else []
            if odd:
                wrong.append(
                    f"skip[{index}].{axis}: expected labels of this axis ({', '.join(known[axis])}), got "
                    f"{', '.join(map(repr, odd))}"
                )
        skipped.append(labels)
    return skipped, wrong


def _matches(skip: Mapping[str, frozenset[str]], labels: Mapping[str, str]) -> bool:
    return bool(skip) and all(labels[axis] in chosen for axis, chosen in skip.items())
