"""An immutable selection of groups that can be counted, printed, narrowed and combined."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphprune.errors import SelectionError

if TYPE_CHECKING:
    from graphprune.graph import Group


@dataclass(frozen=True)
class Selection:
    """Some groups of one graph, in graph order. ``|``, ``&`` and ``-`` combine selections of the same graph."""

    groups: tuple[Group, ...]
    layers: int = field(default=0, repr=False)

    def where(
        self,
        *,
        role: str | Iterable[str] | None = None,
        layers: Any = None,
        name: str | None = None,
        frozen: bool | None = None,
    ) -> Selection:
        """Narrows the selection; arguments as in :meth:`graphprune.DependencyGraph.select`."""
        roles = (role,) if isinstance(role, str) else tuple(role or ())
        wanted = None if layers is None else layer_indices(layers, self.layers)
        kept = tuple(
            g
            for g in self.groups
            if (not roles or any(fnmatch.fnmatchcase(g.role, pattern) for pattern in roles))
            and (wanted is None or g.layer in wanted)
            and (name is None or _matches(g.name, name))
            and (frozen is None or (g.frozen is not None) == frozen)
        )
        return Selection(kept, self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the selected groups."""
        return tuple(g.name for g in self.groups)

    @property
    def units(self) -> int:
        """How many units the selected groups have together."""
        return sum(g.size for g in self.groups)

    def __or__(self, other: Selection) -> Selection:
        mine = set(self.names)
        return Selection((*self.groups, *(g for g in other.groups if g.name not in mine)), self.layers)

    def __and__(self, other: Selection) -> Selection:
        theirs = set(other.names)
        return Selection(tuple(g for g in self.groups if g.name in theirs), self.layers)

    def __sub__(self, other: Selection) -> Selection:
        theirs = set(other.names)
        return Selection(tuple(g for g in self.groups if g.name not in theirs), self.layers)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __str__(self) -> str:
        lines = [f"{len(self)} groups, {self.units} units"]
        return "\n".join(lines + [f"  {g}" for g in self.groups])


def layer_indices(layers: Any, count: int) -> frozenset[int]:
    """Resolves a layer choice against a stack of ``count`` layers.

    Args:
        layers: an integer, an iterable of integers and texts, or a text such as ``"3:-1"``, ``"0,2,4:"``, ``"::2"``;
            negative numbers count from the end, as in Python slices.
        count: the number of layers.

    Raises:
        SelectionError: for text that is no slice, or an index outside of the stack.
    """
    if isinstance(layers, bool):
        raise SelectionError(f"layers must be an index, a list or a slice such as '3:-1', got {layers!r}")
    if isinstance(layers, int):
        if not -count <= layers < count:
            raise SelectionError(f"layer {layers} does not exist: the model has {count} layers")
        return frozenset({layers % count})
    if isinstance(layers, str):
        return frozenset().union(*(_parse(part.strip(), count) for part in layers.split(",")))
    return frozenset().union(*(layer_indices(item, count) for item in layers))


def _parse(text: str, count: int) -> frozenset[int]:
    match = re.fullmatch(r"(-?\d+)?(?:(:)(-?\d+)?(?::(-?\d+)?)?)?", text)
    if match is None or not text:
        raise SelectionError(f"layers: expected an index or a slice such as '3:-1', got {text!r}")
    start, colon, stop, step = match.groups()
    if not colon:
        return layer_indices(int(start), count)
    numbers = [int(n) if n else None for n in (start, stop, step)]
    if numbers[2] == 0:
        raise SelectionError(f"layers: the step of a slice must not be 0, got {text!r}")
    return frozenset(range(count)[slice(*numbers)])


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.search(pattern[3:], name) is not None
        except re.error as error:
            raise SelectionError(f"name pattern {pattern!r} is not a regular expression: {error}") from None
    return fnmatch.fnmatchcase(name, pattern)
