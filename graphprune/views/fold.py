"""Layers that are alike are shown once: names without their layer's index, and which layers share a structure.

Folding changes what is drawn, never what is there: a folded value says for which layers it stands.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graphprune.graph import DependencyGraph

LAYER = "{layer}"
"""Stands for the index of a layer in a folded name."""


@dataclass(frozen=True)
class Fold:
    """Takes the layer's index out of names below ``stack``, the path of the main module list (None if unknown)."""

    stack: str | None

    @cached_property
    def _index(self) -> re.Pattern[str] | None:
        return None if self.stack is None else re.compile(rf"(?<![\w.]){re.escape(self.stack)}\.(\d+)(?![\w])")

    def split(self, text: str) -> tuple[str, int | None]:
        """``("model.layers.{layer}.mlp", 3)`` for ``model.layers.3.mlp``; the text as it is where no layer, or more
        than one, is in it.
        """
        if self._index is None:
            return text, None
        found = set(self._index.findall(text))
        if len(found) != 1:
            return text, None
        return self._index.sub(f"{self.stack}.{LAYER}", text), int(found.pop())

    def values(self, items: Iterable[Any]) -> list[dict[str, Any]]:
        """JSON values that differ in the layer alone, once each: ``{"value": …, "layers": [0, 1, …]}``.

        An item that belongs to one unit only, where units are layers, has that unit's index replaced as well.
        """
        folded: dict[str, list[int]] = {}
        for item in items:
            text, layer = self.split(json.dumps(item))
            if layer is not None and f'"only": {layer}' in text:
                text = text.replace(f'"only": {layer}', f'"only": "{LAYER}"')
            folded.setdefault(text, [])
            if layer is not None:
                folded[text].append(layer)
        return [{"value": json.loads(text), "layers": layers} for text, layers in folded.items()]


def fold_of(graph: DependencyGraph) -> Fold:
    """The fold of a graph: its stack is the path that comes before the layer's index in the tensors of most groups."""
    paths: Counter[str] = Counter()
    for group in graph.groups:
        if group.layer is not None and group.members:
            parts = group.members[0].tensor.split(".")
            paths.update(".".join(parts[:i]) for i, part in enumerate(parts) if part == str(group.layer))
    return Fold(max(paths, key=lambda path: (paths[path], -len(path)), default=None))


def kinds(graph: DependencyGraph) -> tuple[tuple[int, ...], ...]:
    """Which layers have the same groups of the same sizes in tensors of the same shapes, in the order of the first."""
    fold = fold_of(graph)
    contents: dict[int, list[str]] = {layer: [] for layer in range(graph.layers)}
    for group in graph.groups:
        if group.layer is not None:
            text, _ = fold.split(group.model_dump_json(exclude={"layer"}))
            contents.setdefault(group.layer, []).append(text)
    for tensor, shape in graph.shapes.items():
        name, layer = fold.split(tensor)
        if layer is not None:
            contents.setdefault(layer, []).append(f"{name} {shape}")
    alike: dict[str, list[int]] = {}
    for layer, texts in sorted(contents.items()):
        alike.setdefault("\n".join(sorted(texts)), []).append(layer)
    return tuple(tuple(layers) for layers in alike.values())
