"""Specs from YAML files, recipes and dictionaries, and back; every problem reported at once, in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from graphprune.errors import SpecError
from graphprune.problems import Lines, did_you_mean, file_text, validated
from graphprune.schema import PruneSpec
from graphprune.yaml_lines import read_yaml

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
    return _validated(*spec_values(name), name)


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
        raise SpecError(f"unknown recipe.{did_you_mean(name, recipes())} Known: {', '.join(recipes())}", name)
    return (resources.files("graphprune.specs") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def spec_values(name: str) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """What stands in a spec file or a recipe, unchecked, and the line of every path in it.

    Raises:
        SpecError: if it cannot be read, or is no YAML.
    """
    value, lines, problems = read_yaml(_text(name))
    if problems:
        raise SpecError(problems, name)
    return value, lines


def _text(name: str) -> str:
    if name.startswith(RECIPE):
        return recipe_text(name[len(RECIPE) :])
    stem = Path(name).stem
    return file_text(name, f" There is a recipe of that name: '{RECIPE}{stem}'." if stem in recipes() else "")


def _validated(value: Any, lines: Lines, name: str) -> PruneSpec:
    return validated(PruneSpec, value, lines, name, required="targets")
