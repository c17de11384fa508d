"""How the text's stream runs through the entries of the main stack, and what else passes between them.

An entry can be left out whole if it hands on what it was given: one argument and one output carry the same axes (the
residual stream), and nothing else that it computes is used by another one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten_with_path

from graphprune.trace.axes import Expr, atoms, length
from graphprune.trace.record import Info, Kind, Records
from graphprune.trace.stack import LayerStack


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
    strays: set[int] = field(default_factory=set)

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
        stream = next(moving, "")
        if stream and given[stream].entry is not None:
            self.strays.add(index)
        self.running.append((index, stream, given))
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

    @contextmanager
    def storing(self, target: torch.Tensor, kept: Info, made: Info) -> Iterator[None]:
        """What a layer made is copied, outside of it, into a tensor of its own: a state, which is the layer's as well.

        Of a view of a larger tensor nobody could tell who reads it.
        """
        own = made.entry is not None and kept.entry in (None, made.entry) and target._base is None
        if self.current is not None or not own:
            yield
            return
        assert made.entry is not None
        self.running.append((made.entry, "", {}))
        try:
            yield
        finally:
            self.running.pop()

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
        if self.strays:
            return f"layer {min(self.strays)} takes for its residual stream what another layer computes besides it"
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
