"""Study files: from YAML, from those that are shipped, and back; every problem reported at once, in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from graphprune.errors import SpecError
from graphprune.problems import Lines, did_you_mean, file_text, validated
from graphprune.study.axes import put
from graphprune.study.schema import SHORT, Study
from graphprune.yaml_lines import read_yaml

STUDY = "study:"


@dataclass(frozen=True)
class StudyFile:
    """A study, and where its parts stand in its file, for messages.

    Attributes:
        study: what it says.
        name: of the file.
        lines: the line of every path in it.
    """

    study: Study
    name: str = "study"
    lines: Lines = field(default_factory=dict, repr=False)


def read_study(
    source: Study | StudyFile | Mapping[str, Any] | str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> StudyFile:
    """Reads and checks a study file.

    Args:
        source: a YAML file, a shipped study (``"study:NAME"``, see :func:`studies`), the same as a dictionary, or a
            study.
        changes: values by path, laid over what is read: ``seeds``, ``measure.limit``; what the study file has no such
            key for is a path in its ``spec``, such as ``training.steps``, or a short name.

    Raises:
        SpecError: listing every problem with its place, what was expected and what was got.
    """
    if isinstance(source, StudyFile) and not changes:
        return source
    lines: Lines = {}
    value: Any
    if isinstance(source, (Study, StudyFile)):
        study = source if isinstance(source, Study) else source.study
        name, value = "study", _plain(study)
    elif isinstance(source, Mapping):
        name, value = "study", dict(source)
    else:
        name = os.fspath(source)
        value, lines, problems = read_yaml(_text(name))
        if problems:
            raise SpecError(problems, name)
    for path, wanted in (changes or {}).items():
        value, lines = _changed(value, lines, path, wanted)
    study = validated(Study, value, lines, name, required="vary")
    problems = [*_no_such_axis(study), *_varied(study, changes or {})]
    if problems:
        raise SpecError(problems, name)
    return StudyFile(study, name, lines)


def load_study(source: Study | Mapping[str, Any] | str | os.PathLike[str]) -> Study:
    """The study alone; arguments and errors as :func:`read_study`."""
    return read_study(source).study


def dump_study(study: Study) -> str:
    """The study as YAML, without what is not set; :func:`load_study` gives an equal one back."""
    return yaml.safe_dump(_plain(study), sort_keys=False, allow_unicode=True)


def studies() -> tuple[str, ...]:
    """The names of the shipped studies, sorted; ``load_study("study:<name>")`` reads one."""
    folder = resources.files("graphprune.specs") / "studies"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))) if folder.is_dir() else ()


def study_text(name: str) -> str:
    """The YAML text of a shipped study, comments included.

    Raises:
        SpecError: for an unknown name, with the nearest known ones.
    """
    if name not in studies():
        known = ", ".join(studies()) or "none"
        raise SpecError(f"unknown study.{did_you_mean(name, studies())} Known: {known}", name)
    return (resources.files("graphprune.specs") / "studies" / f"{name}.yaml").read_text(encoding="utf-8")


def text_of(study: Study, file: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``data`` of a study with another file to train and calibrate on."""
    judged = study.data.evaluation if study.data is not None else None
    kind = "jsonl" if Path(file).suffix == ".jsonl" else "text"
    return {kind: os.fspath(file), **({} if judged is None else {"evaluation": judged})}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of study files, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def _text(name: str) -> str:
    if name.startswith(STUDY):
        return study_text(name[len(STUDY) :])
    stem = Path(name).stem
    return file_text(name, f" There is a study of that name: '{STUDY}{stem}'." if stem in studies() else "")


def _plain(study: Study) -> dict[str, Any]:
    plain: dict[str, Any] = study.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return plain


def _no_such_axis(study: Study) -> list[str]:
    """What the report is to show along an axis that there is not."""
    axes = list(study.vary)
    return [
        f"{key}: expected an axis ({', '.join(axes)}), got '{name}'.{did_you_mean(name, axes)}"
        for key, name in (("series", study.series), ("across", study.across))
        if name is not None and name not in axes
    ]


def _varied(study: Study, changes: Mapping[str, Any]) -> list[str]:
    """What was to be changed, but is different in every cell."""
    paths = {SHORT.get(axis, axis): axis for axis in study.vary}
    return [
        f"{path}: was to be {value}, but the study varies it: axis '{axis}' ({', '.join(map(str, study.vary[axis]))})"
        for path, value in changes.items()
        for varied, axis in paths.items()
        if _in_full(path) == f"spec.{varied}"
    ]


def _changed(value: Any, lines: Lines, path: str, wanted: Any) -> tuple[Any, Lines]:
    """The content with another value at ``path``, which has no line any more."""
    parts = tuple(_in_full(path).split("."))
    found = dict(value) if isinstance(value, Mapping) else {}
    try:
        if parts[0] == "spec" and len(parts) > 1:
            found["spec"] = put(found.get("spec") or {}, parts[1:], wanted)
        else:
            found = put(found, parts, wanted)
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from None
    return found, {p: line for p, line in lines.items() if p[: len(parts)] != parts}


def _in_full(path: str) -> str:
    """A path as it is in a study file."""
    path = SHORT.get(path, path)
    return path if path.partition(".")[0] in Study.model_fields else f"spec.{path}"
