"""What the page shows, as JSON values; layers that are alike are in it once, so that its size follows their kinds."""

from __future__ import annotations

import json
from typing import Any

from graphprune.graph import DependencyGraph, Group
from graphprune.inventory import unit_weights
from graphprune.views.fold import Fold, fold_of, kinds

_LISTS = ("members", "sites", "norms")


def page_data(graph: DependencyGraph, title: str) -> dict[str, Any]:
    """The data of the page.

    ``groups`` and ``tensors`` are folded (:meth:`graphprune.views.fold.Fold.values`): each entry stands for all its
    ``layers``, and ``{layer}`` in its texts for the index of one. Where a group belongs to no single layer, the items
    of its lists are folded instead.
    """
    fold = fold_of(graph)
    return {
        "title": title,
        "fingerprint": graph.fingerprint,
        "layers": graph.layers,
        "stack": fold.stack,
        "kinds": [list(alike) for alike in kinds(graph)],
        "groups": _groups(graph, fold),
        "tensors": fold.values(_tensors(graph)),
        "notes": fold.values(graph.notes),
    }


def _groups(graph: DependencyGraph, fold: Fold) -> list[dict[str, Any]]:
    followers = _followers(graph)
    folded: dict[tuple[str, bool], list[int]] = {}
    for group in graph.groups:
        text, _ = fold.split(json.dumps(_group(graph, group, followers.get(group.name, {}), fold)))
        layers = folded.setdefault((text, group.layer is None), [])
        layers += [] if group.layer is None else [group.layer]
    return [{"value": json.loads(text), "layers": layers} for (text, _), layers in folded.items()]


def _group(graph: DependencyGraph, group: Group, followers: dict[str, list[Any]], fold: Fold) -> dict[str, Any]:
    value = group.model_dump(mode="json", exclude={"layer"})
    value["weights"] = round(unit_weights(graph, group), 3)
    lists = {**{name: value[name] for name in _LISTS}, "rules": [], "constants": [], **followers}
    for name, items in lists.items():
        value[name] = fold.values(items) if group.layer is None else [{"value": v, "layers": []} for v in items]
    return value


def _followers(graph: DependencyGraph) -> dict[str, dict[str, list[Any]]]:
    """By group: the integers and constants that change with its size."""
    found: dict[str, dict[str, list[Any]]] = {}
    for rule in graph.rules:
        for group in dict.fromkeys(name for _, factors in rule.terms for name in factors):
            found.setdefault(group, {}).setdefault("rules", []).append(rule.model_dump(mode="json"))
    for constant in graph.constants:
        value = constant.model_dump(mode="json", exclude={"group"})
        own = found.setdefault(constant.group, {}).setdefault("constants", [])
        own += [] if value in own else [value]  # a module may be handed the same constant twice
    return found


def _tensors(graph: DependencyGraph) -> list[dict[str, Any]]:
    aliases: dict[str, list[str]] = {}
    for alias, name in graph.tied.items():
        aliases.setdefault(name, []).append(alias)
    unused = set(graph.untraced)
    return [
        {"name": name, "shape": list(shape), "aliases": aliases.get(name, []), "unused": name in unused}
        for name, shape in graph.shapes.items()
    ]
