"""Names with placeholders, matched against the tensors of a model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from graphprune.declared import DeclaredGroup
from graphprune.graph import DependencyGraph

_PARTS = re.compile(r"(\{layer\}|\{unit\}|\*|\[[^\[\]]+\])")


@dataclass(frozen=True)
class Found:
    """A tensor that a pattern matches, under its first name, and what the placeholders stand for."""

    tensor: str
    layer: int | None
    unit: int | None


class TensorNames:
    """The names of a model's tensors, further names of tied ones included."""

    def __init__(self, graph: DependencyGraph) -> None:
        self._known: dict[tuple[str, str], dict[int | None, list[Found]]] = {}
        self._first = {**{name: name for name in graph.shapes}, **graph.tied}
        self._names: dict[str, list[str]] = {}
        for name, first in self._first.items():
            self._names.setdefault(first, []).append(name)

    def find(self, pattern: str, layer: int | None = None) -> list[Found]:
        """The tensors whose whole name ``pattern`` matches; with ``layer`` only those of that layer."""
        return self._matches(pattern, "", layer)

    def below(self, path: str, layer: int | None = None) -> list[Found]:
        """The tensors of the entries of the list at ``path``; ``unit`` is the entry's index."""
        return self._matches(path, r"\.(?P<unit>\d+)\..+", layer)

    def all_of(self, tensor: str) -> list[str]:
        """Every name of a tensor, by its first one."""
        return self._names[tensor]

    def near(self, name: str) -> str:
        """``; the nearest are a, b``, or nothing where nothing is near."""
        found = get_close_matches(name, list(self._first), n=2, cutoff=0.6)
        return f"; nearest are {', '.join(found)}" if found else ""

    def _matches(self, pattern: str, after: str, layer: int | None) -> list[Found]:
        key = (pattern, after)
        if key not in self._known:
            by_layer: dict[int | None, list[Found]] = {}
            self._known[key] = by_layer
            for found in dict.fromkeys(self._all(_compiled(pattern, after))):
                by_layer.setdefault(found.layer, []).append(found)
        known = self._known[key]
        if layer is None or None in known:
            return [f for found in known.values() for f in found]
        return known.get(layer, [])

    def _all(self, regex: re.Pattern[str]) -> Iterator[Found]:
        for name, first in self._first.items():
            match = regex.fullmatch(name)
            if match is not None:
                numbers = {key: int(value) for key, value in match.groupdict().items()}
                yield Found(first, numbers.get("layer"), numbers.get("unit"))


def fill(pattern: str, layer: int | None) -> str:
    """``pattern`` for one layer."""
    return pattern if layer is None else pattern.replace("{layer}", str(layer))


def per_layer(group: DeclaredGroup) -> bool:
    """Whether a declaration stands for one group in every layer."""
    return any("{layer}" in text for text in _patterns(group))


def layers_of(group: DeclaredGroup, names: TensorNames) -> list[int]:
    """The layers that have any of the tensors which a declaration names."""
    found = [f for member in group.members for f in names.find(member.tensor)]
    found += names.below(group.entries) if group.entries is not None else []
    return sorted({f.layer for f in found if f.layer is not None})


def _patterns(group: DeclaredGroup) -> Iterator[str]:
    yield from (m.tensor for m in group.members)
    yield from (text for text in (group.entries, group.name, group.completes) if isinstance(text, str))


def _compiled(pattern: str, after: str = "") -> re.Pattern[str]:
    out, seen = "", set()
    for part in _PARTS.split(pattern):
        if part == "*":
            out += r"[^.]*"
        elif part.startswith("["):
            out += f"[{re.escape(part[1:-1])}]"
        elif part in ("{layer}", "{unit}"):
            name = part[1:-1]
            out += f"(?P={name})" if name in seen else rf"(?P<{name}>\d+)"
            seen.add(name)
        else:
            out += re.escape(part)
    return re.compile(out + after)


def common_path(paths: list[str]) -> str:
    """The deepest module that holds all ``paths``; for a single module, its parent."""
    levels = zip(*(p.split(".") for p in paths), strict=False)
    parts = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, levels)]
    return ".".join(parts[:-1] if len(set(paths)) == 1 and len(parts) > 1 else parts)
