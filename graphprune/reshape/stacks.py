"""Removing entries of module lists: whole layers, and what counts or numbers them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from graphprune.errors import ReshapeError
from graphprune.graph import DependencyGraph, Numbering, Stack
from graphprune.names import bare, plain, resolve_module
from graphprune.plan import PrunePlan
from graphprune.reshape.view import is_view

Edit = Callable[[], None]

_BY_LAYER = "per_layer_config"
"""What every transformers config calls its fields that differ between layers: a mapping from numbers of layers."""


_PINNED = "_graphprune_pinned"
"""Marks the class of a config beside whose fields a list was written down."""


def removed_entries(graph: DependencyGraph, plan: PrunePlan) -> Iterator[tuple[Stack, tuple[int, ...]]]:
    """Every module list that loses entries, with the indices that go."""
    for name, units in plan.removed.items():
        for stack in graph.by_name[name].stacks if units else ():
            yield stack, units


def stack_edits(model: nn.Module, graph: DependencyGraph, plan: PrunePlan) -> list[Edit]:
    """What has to be done to remove the entries of ``plan``; nothing is changed before the edits are called.

    Raises:
        ReshapeError: if a module list is not the one that was traced.
    """
    edits: list[Edit] = []
    for stack, units in removed_entries(graph, plan):
        entries = resolve_module(model, stack.path)
        if not isinstance(entries, nn.ModuleList) or len(entries) != stack.size:
            raise ReshapeError(
                f"expected '{stack.path}' to be a list of {stack.size} modules, which was traced, got "
                f"{type(entries).__name__} of {len(list(entries.children()))}. Trace the model again and plan again."
            )
        kept = [u for u in range(stack.size) if u not in set(units)]
        edits.extend(_lookup_edits(model, stack, kept))
        edits.append(partial(_drop, entries, kept, stack.numbering))
        edits.extend(_config_edits(model, stack, kept))
    return [*edits, *_tied_edits(model, renaming(graph, plan))] if edits else []


def _drop(entries: nn.ModuleList, kept: list[int], numbering: tuple[Numbering, ...]) -> None:
    modules = list(entries)
    entries._modules = {str(i): modules[u] for i, u in enumerate(kept)}
    for index, entry in enumerate(entries):
        inside = dict(entry.named_modules())
        for rule in numbering:
            owner = inside.get(rule.owner)
            if owner is not None and rule.attribute in vars(owner):
                setattr(owner, rule.attribute, rule.scale * index + rule.start)


def _lookup_edits(model: nn.Module, stack: Stack, kept: list[int]) -> Iterator[Edit]:
    for owner, attribute in stack.lookups:
        module = plain(resolve_module(model, owner))
        known = getattr(module, attribute)
        moved = {i: known[u] for i, u in enumerate(kept) if u in known}
        yield partial(setattr, module, attribute, moved)


def _config_edits(model: nn.Module, stack: Stack, kept: list[int]) -> Iterator[Edit]:
    for owner, attribute in stack.lists:
        config = _config(model, owner)
        items = getattr(config, attribute)
        if len(items) != stack.size:
            raise ReshapeError(
                f"expected '{attribute}' of the config to have one item for each of {stack.size} layers, as when "
                f"it was traced, got {len(items)}. Is the config shared with a pruned model? Give each its own."
            )
        yield partial(_set, config, attribute, type(items)(items[u] for u in kept))
    for owner, attribute in stack.counts:
        yield partial(_set, _config(model, owner), attribute, len(kept))
    for config in {id(c): c for c in (_config(model, owner) for owner, _ in stack.counts)}.values():
        if getattr(config, "is_heterogeneous", False):
            yield partial(setattr, config, _BY_LAYER, _moved(config.to_dict()[_BY_LAYER], kept))


def _moved(by_layer: dict[Any, Any], kept: list[int]) -> dict[str, Any]:
    """What a config says of single layers, by their new numbers."""
    said = {int(number): what for number, what in by_layer.items()}
    return {str(i): said[u] for i, u in enumerate(kept) if u in said}


def _tied_edits(model: nn.Module, renamed: Callable[[str], str | None]) -> Iterator[Edit]:
    """The names of tied weights, which every transformers model keeps, follow the layers that move up."""
    for path, module in bare(model).named_modules():
        known: dict[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
        above = renamed(path)
        if not isinstance(module, PreTrainedModel) or above is None:
            continue
        tied = _renamed_ties(known, f"{path}." if path else "", f"{above}." if above else "", renamed)
        if tied != known:
            yield partial(setattr, module, "all_tied_weights_keys", tied)
            # Patterns may know layers by their old numbers, so each name gets one of its own.
            patterns = {f"{re.escape(name)}$": f"{re.escape(source)}$" for name, source in tied.items()}
            yield partial(setattr, module, "_tied_weights_keys", patterns)


def _renamed_ties(
    known: dict[str, str], before: str, after: str, renamed: Callable[[str], str | None]
) -> dict[str, str]:
    """Tied names below the prefix ``before``; where their source is gone, the first that stays takes its place."""
    tied: dict[str, str] = {}
    for source in dict.fromkeys(known.values()):
        names = [source, *(name for name, of in known.items() if of == source)]
        left = [new.removeprefix(after) for name in names if (new := renamed(before + name)) is not None]
        tied.update(dict.fromkeys(left[1:], left[0]) if left else {})
    return tied


def _config(model: nn.Module, owner: str) -> Any:
    found: Any = bare(model)
    for name in owner.split("."):
        found = getattr(found, name)
    return found._base if is_view(found) else found


def _set(config: Any, attribute: str, value: Any) -> None:
    computed = getattr(type(config), attribute, None)
    if isinstance(computed, property) and computed.fset is None:
        # The list follows from fields that cannot describe every choice of layers, so it is written down instead.
        kind = type(config)
        members = {attribute: value, "__module__": kind.__module__, _PINNED: True}
        config.__class__ = type(kind.__name__, (kind,), members)
    else:
        # One field at a time would be refused by configs that check fields against each other.
        object.__setattr__(config, attribute, value)


def unpin(config: Any) -> None:
    """Takes back lists that were written down beside a config's fields: it describes the model by its fields again."""
    while vars(type(config)).get(_PINNED):
        config.__class__ = type(config).__mro__[1]


def config_changes(graph: DependencyGraph, plan: PrunePlan, config: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Fields of a config (as plain values) that must change when entries go, with their new values."""
    changes: dict[tuple[str, ...], Any] = {}
    for stack, units in removed_entries(graph, plan):
        kept = [u for u in range(stack.size) if u not in set(units)]
        for owner, attribute in stack.counts:
            path = tuple(owner.split(".")[1:])
            changes[(*path, attribute)] = len(kept)
            by_layer = _part(config, path).get(_BY_LAYER)
            if by_layer:
                changes[(*path, _BY_LAYER)] = _moved(by_layer, kept)
        for owner, attribute in stack.lists:
            part = _part(config, tuple(owner.split(".")[1:]))
            if isinstance(part.get(attribute), list):
                changes[(*owner.split(".")[1:], attribute)] = [part[attribute][u] for u in kept]
    return changes


def _part(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        config = config[name]
    return config


def renaming(graph: DependencyGraph, plan: PrunePlan) -> Callable[[str], str | None]:
    """What a module, tensor or group inside of a module list is called afterwards; None if it is gone."""
    stacks = [
        (stack.path, [u for u in range(stack.size) if u not in set(units)])
        for stack, units in removed_entries(graph, plan)
    ]
    stacks.sort(key=lambda item: -len(item[0]))  # inner lists first, while the paths of outer ones still hold

    def renamed(name: str) -> str | None:
        for path, kept in stacks:
            found = re.match(rf"{re.escape(path)}\.(\d+)(?=[./]|$)", name)
            if found is not None:
                if int(found[1]) not in kept:
                    return None
                name = f"{path}.{kept.index(int(found[1]))}{name[found.end() :]}"
        return name

    return renamed


def called_after(graph: DependencyGraph, plan: PrunePlan) -> DependencyGraph:
    """``graph`` with tensors and modules by the names they have once the entries of ``plan`` are gone.

    For finding in the cut model what the groups speak of: sizes and units are still those from before.
    """
    if not any(True for _ in removed_entries(graph, plan)):
        return graph
    after = renaming(graph, plan)

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        return {new: value for name, value in tensors.items() if (new := after(name)) is not None}

    groups = []
    for group in graph.groups:
        members = [(member, after(member.tensor)) for member in group.members]
        stay = tuple(m.model_copy(update={"tensor": name}) for m, name in members if name is not None)
        groups.append(group.model_copy(update={"members": stay}))
    tied = {name: new for name, old in rename(graph.tied).items() if (new := after(old)) is not None}
    readers = {
        name: tuple(new for old in paths if (new := after(old)) is not None)
        for name, paths in rename(graph.readers).items()
    }
    update = {"groups": tuple(groups), "shapes": rename(graph.shapes), "tied": tied, "readers": readers}
    return graph.model_copy(update=update)
