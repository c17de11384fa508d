"""The main stack of layers: where it is, and how the text's stream runs through its entries.

An entry can be left out whole if it hands on what it was given: one argument and one output carry the same axes (the
residual stream), and nothing else that it computes is used by another one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path

from graphprune.graph import Numbering, Stack
from graphprune.trace.axes import Expr, atoms, length
from graphprune.trace.integers import configs_of
from graphprune.trace.record import Info, Kind, Records

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


@dataclass(frozen=True)
class Passage:
    """How one call of an entry handed on the stream: which argument became which output, and their axes."""

    argument: str
    output: str
    given: tuple[Expr, ...]
    returned: tuple[Expr, ...]


@dataclass
class Passages:
    """What was seen of the stack's entries while the forward pass ran."""

    stack: LayerStack
    running: list[tuple[int, str, dict[str, Info]]] = field(default_factory=list)
    seen: dict[int, list[Passage | None]] = field(default_factory=lambda: defaultdict(list))
    crossings: set[tuple[int, int | None, int | None]] = field(default_factory=set)
    others: dict[int | None, tuple[str, dict[str, Info], Info]] = field(default_factory=dict)
    handed: dict[int | None, str] = field(default_factory=dict)
    parts: list[tuple[str, int]] = field(default_factory=list)

    @property
    def current(self) -> int | None:
        """The entry that runs now."""
        return self.running[-1][0] if self.running else None

    def enter(self, path: str, inputs: Iterable[tuple[str, torch.Tensor]], records: Records) -> None:
        """An entry begins: its first activation of two or more dimensions is the stream."""
        if self.stack.beside and (part := self.stack.part(path)) is not None:
            self.parts.append(part)
        index = self.stack.begins(path)
        if index is None:
            return
        given = {name: records.get(tensor) for name, tensor in inputs}
        moving = (n for n, info in given.items() if info.kind is Kind.ACTIVATION and len(info.dims) > 1)
        self.running.append((index, next(moving, ""), given))
        self.handed.update((i.source, n) for n, i in given.items() if i.source in self.others and i.entry == index - 1)

    def leave(self, path: str, outputs: Any, records: Records) -> None:
        """An entry ends: the first output of the stream's shape carries it on."""
        index = self.stack.ends(path)
        if index is None or self.current != index:
            return
        _, argument, inputs = self.running.pop()
        given, found = inputs.get(argument), None
        for name, tensor in named_leaves(outputs):
            info = records.get(tensor)
            if found is None and given is not None and _lengths(info.dims) == _lengths(given.dims):
                found = Passage(argument, name, given.dims, info.dims)
                records.infos[tensor] = replace(info, entry=None)
            else:
                self.others[info.source] = name, inputs, info
        self.seen[index].append(found)

    def used(self, info: Info) -> None:
        """A tensor is read; what another entry computed besides the stream ties the two together."""
        if info.entry is not None and info.kind is Kind.ACTIVATION and info.entry != self.current:
            self.crossings.add((info.entry, self.current, info.source))

    def beside(self) -> tuple[tuple[str, str], ...]:
        """Arguments and outputs of further streams: what one entry hands out, the next one takes in the same place.

        Empty unless that holds for every entry that hands out something of this name, as wide as the first stream and
        apart from it.
        """
        pairs = {(argument, self.others[source][0]) for source, argument in self.handed.items()}
        outputs = {output for _, output in pairs}
        first = {(p.argument, p.output) for calls in self.seen.values() for p in calls if p}
        places = [*first, *pairs]
        if any(len({place[side] for place in places}) != len(places) for side in (0, 1)):
            return ()
        stream = self.stream()
        arguments = {output: argument for argument, output in pairs}
        for output, inputs, made in self.others.values():
            if output not in outputs:
                continue
            given = inputs.get(arguments[output])
            if given is None or _lengths(given.dims) != _lengths(made.dims) or not made.dims:
                return ()
            wide = [atoms(given.dims[-1]), atoms(made.dims[-1])]
            if not all(wide) or not {id(atom) for found in wide for atom in found} <= stream:
                return ()
        return tuple(sorted(pairs))

    def spread(self) -> tuple[str, ...]:
        """The lists over which layers are spread, in the order in which they run; empty if they do not take turns."""
        lists = tuple(dict.fromkeys(path for path, _ in self.parts))
        turns = [(path, index) for index in range(self.stack.count) for path in lists]
        rounds, rest = divmod(len(self.parts), len(turns) or 1)
        together = {self.stack.path, *self.stack.beside} == set(lists)
        return lists if together and not rest and self.parts == turns * rounds else ()

    def stream(self) -> set[int]:
        """Identities of the atoms that the stream's last dimension is made of."""
        return {id(a) for calls in self.seen.values() for p in calls if p for a in atoms(p.given[-1])}

    def obstacle(self) -> str | None:
        """Why entries cannot be left out one by one; None if they can."""
        if len(self.seen) < self.stack.count:
            idle = sorted(set(range(self.stack.count)) - set(self.seen))
            return f"layer {idle[0]} did not run in the traced forward pass"
        for index, calls in sorted(self.seen.items()):
            for p in calls:
                if p is None or not _same(p.given[-1], p.returned[-1]):
                    return f"layer {index} does not hand on the residual stream that it is given"
        if len({(p.argument, p.output) for calls in self.seen.values() for p in calls if p}) > 1:
            return "layers take and hand on the residual stream in different places"
        needed = self.needed()
        return needed[min(needed)] if len(needed) == self.stack.count else None

    def needed(self) -> dict[int, str]:
        """The entries that must stay because of what they compute for others, with the reason, by their index."""
        reasons: dict[int, str] = {}
        streams = {output for _, output in self.beside()}
        crossings = [c for c in self.crossings if not self._handed_on(c, streams)]
        for made, used, _ in sorted(crossings, key=lambda c: (c[0], -1 if c[1] is None else c[1])):
            where = "after the stack" if used is None else f"in layer {used}"
            reasons.setdefault(
                made, f"layer {made} computes something besides the residual stream that is used {where}"
            )
        return reasons

    def _handed_on(self, crossing: tuple[int, int | None, int | None], streams: set[str]) -> bool:
        """Whether what crosses is a further stream, on its way to the next entry or out of the last one."""
        made, used, source = crossing
        if source not in self.others or self.others[source][0] not in streams:
            return False
        return (source in self.handed and used == made + 1) or (used is None and made == self.stack.count - 1)


def named_leaves(tree: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of nested arguments or outputs with their keys, joined by dots; empty for a bare tensor."""
    for keys, leaf in tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, torch.Tensor):
            yield ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in keys), leaf


def _lengths(dims: tuple[Expr, ...]) -> list[int]:
    return [length(e) for e in dims]


def _same(left: Expr, right: Expr) -> bool:
    return length(left) == 1 or [id(a) for a in atoms(left)] == [id(a) for a in atoms(right)]


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
