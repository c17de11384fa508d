"""The axes of a study: their values with labels, and how a value is laid over a spec."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graphprune.problems import Lines, did_you_mean
from graphprune.schema import PruneSpec
from graphprune.study.schema import SHORT, Study
from graphprune.yaml_lines import Path

#: Ways to say how much of a target goes; a spec has one of them.
_AMOUNTS = ("ratio", "count", "keep")
#: Parts of a spec that may be a text alone, and the key that this text is the value of.
_ALONE = {"criterion": "name", "quantization": "kind", "schedule": "kind"}
_MODES = {"one-shot": "none", "one_shot": "none"}


@dataclass(frozen=True)
class Value:
    """One value of an axis.

    Attributes:
        label: what it is called.
        value: what is laid over the spec.
        place: where it stands in the study file.
    """

    label: str
    value: Any
    place: Path

    @property
    def number(self) -> float | None:
        """The value, where it is a number."""
        value = self.value
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: as in the study file.
        path: what it sets in a spec; empty where its values are parts of a spec.
        values: in the order of the file.
    """

    name: str
    path: tuple[str, ...]
    values: tuple[Value, ...]

    def laid(self, spec: dict[str, Any], value: Value) -> dict[str, Any]:
        """A spec with a value of this axis over it; ``spec`` is not changed.

        Raises:
            ValueError: if the spec has no such place.
        """
        if not self.path:
            return merged(spec, value.value)
        if len(self.path) == 1:
            return merged(spec, {self.path[0]: value.value})
        return put(spec, self.path, value.value)

    def lines(self, value: Value, lines: Lines) -> Iterator[tuple[Path, int]]:
        """The lines of the study file by paths in a spec that a value of this axis is laid over."""
        for place, line in lines.items():
            if place[: len(value.place)] == value.place:
                inner = place[len(value.place) :]
                yield (*self.path, *inner), line


def axes_of(study: Study) -> tuple[list[Axis], list[str]]:
    """The axes in the order of the file, and what is wrong with them."""
    axes, problems = [], []
    for name, given in study.vary.items():
        pairs = given.items() if isinstance(given, Mapping) else ((label_of(v), v) for v in given)
        places = list(given) if isinstance(given, Mapping) else range(len(given))
        values = [
            Value(str(label), _MODES.get(value, value) if name == "mode" and isinstance(value, str) else value, place)
            for (label, value), place in zip(pairs, [("vary", name, p) for p in places], strict=True)
        ]
        twice = sorted({v.label for v in values if [w.label for w in values].count(v.label) > 1})
        if twice:
            told = ", ".join(map(repr, twice))
            problems.append(f"vary.{name}: {told} is there twice; give every value its own label")
        path = tuple(SHORT.get(name, name).split("."))
        if path[0] not in PruneSpec.model_fields:
            problems += _no_parts(name, values)
            path = ()
        axes.append(Axis(name, path, tuple(values)))
    return axes, problems


def in_order(axes: list[Axis]) -> list[Axis]:
    """The order in which axes are laid over a spec: parts of specs, then whole keys, then places inside of these."""
    return sorted(axes, key=lambda axis: len(axis.path))


def label_of(value: Any) -> str:
    """What a value is called that has no label: itself, in a few words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, Mapping):
        first = [str(value["name"])] if "name" in value else []
        return ", ".join([*first, *(f"{k} {label_of(v)}" for k, v in value.items() if k != "name")])
    if isinstance(value, (list, tuple)):
        return " + ".join(map(label_of, value))
    return "none" if value is None else str(value)


def merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with parts of another one over it, section by section; lists are replaced.

    A criterion that is named is replaced whole, because every one has options of its own, but for its ``average``.
    """
    found = copy.deepcopy(dict(below))
    for key, value in over.items():
        old, new = _section(key, found.get(key)), _section(key, value)
        if key == "criterion" and isinstance(old, dict) and isinstance(new, dict) and "name" in new:
            found[key] = {**{k: v for k, v in old.items() if k == "average"}, **copy.deepcopy(new)}
        elif isinstance(old, dict) and isinstance(new, dict):
            found[key] = merged(old, new)
        else:
            found[key] = copy.deepcopy(new)
    return found


def put(spec: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A spec with a value at a path; ``spec`` is not changed.

    Raises:
        ValueError: if there is no such place.
    """
    found = copy.deepcopy(dict(spec))
    _set(found, path, value, ())
    return found


def _section(key: str, value: Any) -> Any:
    """A part that is a text alone, as the section it stands for."""
    return {_ALONE[key]: value} if key in _ALONE and isinstance(value, str) else value


def _set(here: Any, path: tuple[str, ...], value: Any, past: tuple[str, ...]) -> None:
    """Puts a value at a path: ``*`` is every item of a list, a number one of them."""
    part, rest = path[0], path[1:]
    if isinstance(here, list):
        chosen = range(len(here)) if part == "*" else [int(part)] if part.isdigit() else []
        if not chosen or max(chosen) >= len(here):
            raise ValueError(f"expected '*' or one of {len(here)} items in '{'.'.join(past)}', got '{part}'")
        for index in chosen:
            _set(here[index], rest, value, (*past, part))
        return
    if not isinstance(here, dict):
        told = f"there is nothing to set '{'.'.join(path)}' in: '{'.'.join(past)}' is {label_of(here)}"
        raise ValueError(told)  # noqa: TRY004 - of a file, not of a caller
    if rest:
        inner = _section(part, here.get(part))
        here[part] = {} if inner is None else inner
        _set(here[part], rest, value, (*past, part))
        return
    if past[:1] == ("targets",) and part in _AMOUNTS:
        for other in _AMOUNTS:
            here.pop(other, None)
    here[part] = copy.deepcopy(value)


def _no_parts(name: str, values: list[Value]) -> list[str]:
    wrong = [v.label for v in values if not isinstance(v.value, Mapping)]
    if not wrong:
        return []
    known = [*PruneSpec.model_fields, *SHORT]
    problem = (
        f"vary.{name}: expected a key of a spec, a short name ({', '.join(SHORT)}), a path with dots, or parts of a "
        f"spec as values; '{name}' is no key and {', '.join(map(repr, wrong))} no part of a spec."
        f"{did_you_mean(name, known)}"
    )
    return [problem]
