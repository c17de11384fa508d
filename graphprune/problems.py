"""A YAML file of ours as a checked value; every problem at once, in words, with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graphprune.criterion_spec import CriterionSpec
from graphprune.errors import GraphPruneError, SpecError
from graphprune.importance import criteria
from graphprune.yaml_lines import path_text

M = TypeVar("M", bound=BaseModel)
Lines = Mapping[tuple[str | int, ...], int]


def file_text(name: str, hint: str = "") -> str:
    """The text of a YAML file.

    Args:
        name: its path.
        hint: added where there is no such file.

    Raises:
        SpecError: if it is not there, or no text in UTF-8.
    """
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"expected a YAML file, found no such file.{hint}", name) from None
    except IsADirectoryError:
        raise SpecError("expected a YAML file, found a folder", name) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"expected a text file in UTF-8, found a byte that is not: {error}", name) from None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", name) from None


def validated(model: type[M], value: Any, lines: Lines, name: str, *, required: str) -> M:
    """The content of a file as a ``model``.

    Args:
        model: what it describes.
        value: the content.
        lines: the line of every path in it, as far as known.
        name: what to call the file.
        required: the key that no such file can do without.

    Raises:
        SpecError: listing every problem with its place, what was expected and what was got.
    """
    if not isinstance(value, dict):
        got = "nothing" if value is None else type(value).__name__
        raise SpecError(f"expected a mapping with at least the key '{required}', got {got}", name)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise SpecError(problems(error, model, value, lines), name) from None


def problems(error: ValidationError, model: type[BaseModel], value: dict[str, Any], lines: Lines) -> list[str]:
    """What is wrong with ``value``, one line of words per problem."""
    details = [e for e in error.errors(include_url=False) if not _is_echo(e)]
    return [_problem(e, model, value, lines) for e in details]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`` Did you mean 'lora'?``, or nothing where no known name is near."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _is_echo(error: ErrorDetails) -> bool:
    """Pydantic calls a list 'too short' when its items are invalid, beside reporting the items themselves."""
    return error["type"] == "too_short" and bool(error["input"])


def _problem(error: ErrorDetails, model: type[BaseModel], value: dict[str, Any], lines: Lines) -> str:
    path = error["loc"]
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = (path_text(path) or "everything") + (f" (line {line})" if line else "")
    section, key = _section(path[:-1], model, value), path[-1] if path else None
    if error["type"] == "extra_forbidden":
        known = _keys(section, value)
        return f"{where}: unknown key.{did_you_mean(str(key), known)} Known here: {', '.join(known)}"
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


def _section(path: tuple[str | int, ...], model: type[BaseModel], value: dict[str, Any]) -> type[BaseModel] | None:
    """The model that describes the part of a file at ``path``, or None below the schema's leaves."""
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
