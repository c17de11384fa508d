"""The main stack of layers: where it is, and what outside of it counts and numbers its entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from graphprune.graph import Numbering, Stack
from graphprune.trace.integers import configs_of

_CERTAIN = 8
"""From this many entries on, a list of as many items is taken to be about them."""


DEPTHS = ("num_layers", "decoder_layers", "num_decoder_layers")
"""What configs call the number of layers of a decoder, besides their common name for it."""


class LayerStack:
    """The main stack: the outermost module list that holds most parameters; idle ones (a vision tower) apart.

    Layers may be spread over several lists (``attentions``, ``ffns``, …) of as many entries.

    Attributes:
        path: of the list that holds most parameters; None without any.
        count: how many layers there are.
        beside: paths of lists with as many entries beside it.
        lists: paths of the lists that make up a layer, in the order in which its parts run.
    """

    def __init__(self, model: nn.Module, idle: frozenset[str] = frozenset(), lists: tuple[str, ...] = ()) -> None:
        found = {
            path: sum(p.numel() for p in module.parameters())
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
        }
        outer = [p for p in found if not any(p.startswith(q + ".") for q in found) and p not in idle]
        self.idle = idle
        self.path = max(outer, key=lambda p: found[p], default=None)
        self.count = len(model.get_submodule(self.path)) if self.path is not None else 0  # type: ignore[arg-type]
        self.beside = tuple(_beside(model, self.path, self.count))
        self.lists = lists or ((self.path,) if self.path is not None else ())

    def layer(self, name: str) -> int | None:
        """The index of the layer that holds a tensor or module, or None."""
        path = next((path for path in self.lists if name.startswith(path + ".")), None)
        return None if path is None else int(name[len(path) + 1 :].split(".", 1)[0])

    def begins(self, path: str) -> int | None:
        """The index of the layer that begins with the module at ``path``, or None."""
        return self._entry(path, self.lists[0]) if self.lists else None

    def ends(self, path: str) -> int | None:
        """The index of the layer that ends with the module at ``path``, or None."""
        return self._entry(path, self.lists[-1]) if self.lists else None

    def part(self, path: str) -> tuple[str, int] | None:
        """The list that has a part of a layer at ``path``, and the index of the layer; None for any other module."""
        for parts in (self.path, *self.beside):
            index = None if parts is None else self._entry(path, parts)
            if parts is not None and index is not None:
                return parts, index
        return None

    @staticmethod
    def _entry(path: str, parts: str) -> int | None:
        above, _, name = path.rpartition(".")
        return int(name) if above == parts else None


def _beside(model: nn.Module, path: str | None, count: int) -> Iterator[str]:
    """Other module lists with as many entries as the stack, beside it."""
    parent, _, own = (path or "").rpartition(".")
    for name, module in model.get_submodule(parent).named_children() if path else ():
        if name != own and isinstance(module, nn.ModuleList) and len(module) == count:
            yield f"{parent}.{name}".lstrip(".")


def describe_stacks(model: nn.Module, stack: LayerStack, lookups: Iterable[tuple[str, str]] = ()) -> tuple[Stack, ...]:
    """The lists of the stack as values, with everything outside of them that counts or numbers their entries."""
    return tuple(
        Stack(
            path=path,
            size=stack.count,
            numbering=tuple(numbering(list(model.get_submodule(path).children()))),
            lists=tuple(_lists(model, stack.count)) if path == stack.path else (),
            counts=tuple(counts(model, stack.count)) if path == stack.path else (),
            lookups=tuple(lookups) if path == stack.path else (),
        )
        for path in stack.lists
    )


def numbering(entries: list[nn.Module]) -> Iterator[Numbering]:
    """Integers that count entries: 0, 1, 2, … (or 0, 2, 4, … where an entry has two places), in two or more of them.

    Where a single entry has the attribute, it must be called something with "layer" besides.
    """
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for index, entry in enumerate(entries):
        for path, module in entry.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
                    found[path, name][index] = int(value)
    for (path, name), values in found.items():
        if len(values) < 2:
            ((index, value),) = values.items()
            if value == index > 0 and "layer" in name:
                yield Numbering(owner=path, attribute=name, scale=1, start=0)
            continue
        (i, a), (j, b) = sorted(values.items())[:2]
        scale, rest = divmod(b - a, j - i)
        start = a - scale * i
        if 0 <= start < scale and not rest and all(v == scale * k + start for k, v in values.items()):
            yield Numbering(owner=path, attribute=name, scale=scale, start=start)


def _lists(model: nn.Module, count: int) -> Iterator[tuple[str, str]]:
    for owner, config in configs_of(model):
        for name, value in (*vars(config).items(), *_computed(config)):
            if not isinstance(value, list | tuple) or len(value) != count or name.endswith("_id"):
                continue
            about_layers = "layer" in name or _words(value)
            if about_layers or count >= _CERTAIN:
                yield owner, name


def kinds(model: nn.Module, count: int) -> Iterator[tuple[int, ...]]:
    """The entries of every kind that a list of the config tells apart: caches are built for those that it lists."""
    found: dict[tuple[int, ...], None] = {}
    configs = dict(configs_of(model))
    for owner, attribute in _lists(model, count):
        values = getattr(configs[owner], attribute)
        if all(isinstance(v, str) for v in values):
            for kind in dict.fromkeys(values):
                found[tuple(i for i, v in enumerate(values) if v == kind)] = None
    yield from found


def _computed(config: Any) -> Iterator[tuple[str, Any]]:
    """The lists that a config computes from its other fields: properties that say so, or are called after layers."""
    for name in dir(type(config)):
        rule = getattr(type(config), name, None)
        if name.startswith("_") or not isinstance(rule, property):
            continue
        if "layer" in name or "list[" in str(getattr(rule.fget, "__annotations__", {}).get("return")):
            try:
                yield name, getattr(config, name)
            except Exception:  # noqa: BLE001, S112 - a property may need fields that this config lacks
                continue


def _words(values: Sequence[Any]) -> bool:
    """Whether a list tells its items apart by words, of which some may be missing."""
    return any(isinstance(v, str) for v in values) and all(isinstance(v, str | None) for v in values)


def counts(model: nn.Module, count: int) -> Iterator[tuple[str, str]]:
    """The integers on the config that say how many entries there are, as (owner, attribute)."""
    for owner, config in configs_of(model):
        for name in _depths(config):
            if vars(config).get(name) == count:
                yield owner, name


def own_counts(model: nn.Module, stack: LayerStack) -> Iterator[tuple[str, str]]:
    """The integers by which the module that has the stack counts its entries, as (path, attribute)."""
    parent = (stack.path or "").rpartition(".")[0]
    names = (name for _, config in configs_of(model) for name in _depths(config))
    for name in dict.fromkeys((*names, *DEPTHS)):
        if vars(model.get_submodule(parent)).get(name) == stack.count:
            yield parent, name


def _depths(config: Any) -> tuple[str, ...]:
    """What a config may call the number of its layers."""
    common = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    return tuple(dict.fromkeys((common, *DEPTHS)))
