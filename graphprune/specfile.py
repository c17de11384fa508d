"""Specs from YAML files, recipes and dictionaries, and back; every problem reported at once, in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graphprune.criterion_spec import CriterionSpec
from graphprune.errors import GraphPruneError, SpecError
from graphprune.importance import criteria
from graphprune.schema import PruneSpec
from graphprune.yaml_lines import path_text, read_yaml

RECIPE = "recipe:"


def load_spec(source: PruneSpec | Mapping[str, Any] | str | os.PathLike[str]) -> PruneSpec:
    """Reads and checks a spec.

    Args:
        source: a YAML file, a shipped recipe (``"recipe:loraprune"``, see :func:`recipes`), or the same as a
            dictionary. A spec is returned as it is.

    Raises:
        SpecError: listing every problem with its place, what was expected and what was got.
    """
    if isinstance(source, PruneSpec):
        return source
    if isinstance(source, Mapping):
        return _validated(dict(source), {}, "spec")
    name = os.fspath(source)
    value, lines, problems = read_yaml(_text(name))
    if problems:
        raise SpecError(problems, name)
    return _validated(value, lines, name)


def dump_spec(spec: PruneSpec) -> str:
    """The spec as YAML, defaults written out; :func:`load_spec` gives an equal spec back."""
    return yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def recipes() -> tuple[str, ...]:
    """The names of the shipped recipes, sorted; ``load_spec("recipe:<name>")`` reads one."""
    folder = resources.files("graphprune.specs") / "recipes"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def recipe_text(name: str) -> str:
    """The YAML text of a shipped recipe, comments included.

    Raises:
        SpecError: for an unknown name, with the nearest known ones.
    """
    if name not in recipes():
        raise SpecError(f"unknown recipe.{_did_you_mean(name, recipes())} Known: {', '.join(recipes())}", name)
    return (resources.files("graphprune.specs") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _text(name: str) -> str:
    if name.startswith(RECIPE):
        return recipe_text(name[len(RECIPE) :])
    path = Path(name)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = f" There is a recipe of that name: '{RECIPE}{path.stem}'." if path.stem in recipes() else ""
        raise SpecError(f"expected a YAML file, found no such file.{hint}", name) from None
    except IsADirectoryError:
        raise SpecError("expected a YAML file, found a folder", name) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"expected a text file in UTF-8, found a byte that is not: {error}", name) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", name) from None


def _validated(value: Any, lines: Mapping[tuple[str | int, ...], int], name: str) -> PruneSpec:
    if not isinstance(value, dict):
        got = "nothing" if value is None else type(value).__name__
        raise SpecError(f"expected a mapping with at least the key 'targets', got {got}", name)
    try:
        return PruneSpec.model_validate(value)
    except ValidationError as error:
        details = [e for e in error.errors(include_url=False) if not _is_echo(e)]
        raise SpecError([_problem(e, value, lines) for e in details], name) from None


def _is_echo(error: ErrorDetails) -> bool:
    """Pydantic calls a list 'too short' when its items are invalid, beside reporting the items themselves."""
    return error["type"] == "too_short" and bool(error["input"])


def _problem(error: ErrorDetails, value: dict[str, Any], lines: Mapping[tuple[str | int, ...], int]) -> str:
    path = error["loc"]
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = (path_text(path) or "spec") + (f" (line {line})" if line else "")
    section, key = _section(path[:-1], value), path[-1] if path else None
    if error["type"] == "extra_forbidden":
        known = _keys(section, value)
        return f"{where}: unknown key.{_did_you_mean(str(key), known)} Known here: {', '.join(known)}"
    if error["type"] == "value_error":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    field = section.model_fields.get(str(key)) if section else None
    hint = f". {field.description}" if field and field.description else ""
    if error["type"] == "missing":
        return f"{where}: expected, but missing{hint}"
    told = error["msg"].split(", unable")[0].replace("Input should be", "expected").replace("valid tuple", "list")
    return f"{where}: {told}, got {error['input']!r}{_percent(key, error['input'])}{hint}"


def _percent(key: object, value: object) -> str:
    """The most common slip: a percentage where a fraction is meant."""
    if key == "ratio" and isinstance(value, int | float) and 1 < value < 100:
        return f" (a percentage? write {value / 100:g})"
    return ""


def _section(path: tuple[str | int, ...], value: dict[str, Any]) -> type[BaseModel] | None:
    """The model that describes the part of a spec at ``path``, or None below the schema's leaves."""
    model: type[BaseModel] = PruneSpec
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return _criterion_options(value) or model if model is CriterionSpec else model


def _model(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, UnionType, tuple):
        return next((m for m in map(_model, get_args(annotation)) if m is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _criterion_options(value: dict[str, Any]) -> type[BaseModel] | None:
    given = value.get("criterion")
    try:
        return criteria.get(given["name"]).options_model if isinstance(given, dict) else None
    except (GraphPruneError, KeyError, TypeError):
        return None


def _keys(section: type[BaseModel] | None, value: dict[str, Any]) -> list[str]:
    keys = list(section.model_fields) if section else []
    return ["name", "average", *keys] if section and section is _criterion_options(value) else keys


def _did_you_mean(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
