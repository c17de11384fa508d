"""The sizes next to what was asked for that a stock config can describe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphprune.export.kinds import Kind
from graphprune.export.stock import Stock

#: How many sizes of one kind, and of several together, are tried by building.
_MOST_SIZES, _MOST_TOGETHER = 64, 48
#: How many acceptable sizes of each kind are tried together.
_BEAM = 4
#: So few kinds are tried together with sizes that are refused alone.
_FEW = 3


@dataclass(frozen=True)
class Wish:
    """What is wanted of one kind.

    Attributes:
        kind: its groups.
        asked: how many units of each are to stay.
        options: how many may stay, by what is known without building.
    """

    kind: Kind
    asked: int
    options: tuple[int, ...]

    def sizes(self, kept: int) -> dict[str, int]:
        """The sizes of its groups with ``kept`` units each."""
        return {group.name: kept for group in self.kind.groups}

    def near(self, most: float) -> list[int]:
        """Its options that are no further from what was asked than ``most`` of all units; nearest first."""
        close = [n for n in self.options if abs(n - self.asked) <= self.kind.size * most]
        return sorted(close, key=lambda n: (abs(n - self.asked), -n))


def choose(stock: Stock, wishes: Sequence[Wish], most: float) -> Iterator[list[int]]:
    """Sizes, one per wish, that a stock config describes by their shapes; nearest to the wishes first.

    Args:
        stock: the class to ask.
        wishes: of all kinds that lose units.
        most: how far a size may be from what was asked, as a share of all units of a group.
    """
    asked = [wish.asked for wish in wishes]
    if all(n in wish.options for n, wish in zip(asked, wishes, strict=True)) and stock.accepts(_sizes(wishes, asked)):
        yield asked
    lists = [list(itertools.islice(_alone(stock, wish, most), _BEAM)) for wish in wishes]
    if 1 < len(wishes) <= _FEW:  # a size that is refused alone may be accepted beside another
        lists = [list(dict.fromkeys([*own, *wish.near(most)[:_BEAM]])) for own, wish in zip(lists, wishes, strict=True)]
    combined = sorted(itertools.product(*lists), key=lambda kept: _distance(wishes, kept))
    for number, kept in enumerate(combined[:_MOST_TOGETHER]):
        if list(kept) != asked and stock.accepts(_sizes(wishes, kept), quick=number > 0):
            yield list(kept)


def _alone(stock: Stock, wish: Wish, most: float) -> Iterator[int]:
    """Sizes that are accepted where no other kind loses units, nearest first.

    Which fields of the config say them is found with sizes that are easy to accept: most classes divide by numbers of
    units.
    """
    near = wish.near(most)
    if near and stock.accepts(wish.sizes(near[0])):
        yield near[0]
    elif not any(stock.accepts(wish.sizes(n)) for n in _easy(wish.kind)):
        return
    for kept in near[1:_MOST_SIZES]:
        if stock.accepts(wish.sizes(kept), quick=True):
            yield kept


def _easy(kind: Kind) -> list[int]:
    """A half and a quarter of the units, where they divide."""
    floor = max(1, *(g.minimum for g in kind.groups))
    return [kind.size // n for n in (2, 4) if kind.size % n == 0 and kind.size // n >= floor]


def accepted(stock: Stock, wish: Wish) -> list[int]:
    """The sizes that are accepted where no other kind loses units, for messages; some, where there are very many."""
    if not any(stock.accepts(wish.sizes(n)) for n in _easy(wish.kind)):
        return []
    return [n for n in wish.options[:_MOST_SIZES] if stock.accepts(wish.sizes(n), quick=True)]


def _sizes(wishes: Sequence[Wish], kept: Sequence[int]) -> Mapping[str, int]:
    return {name: n for wish, kept_here in zip(wishes, kept, strict=True) for name, n in wish.sizes(kept_here).items()}


def _distance(wishes: Sequence[Wish], kept: Sequence[int]) -> tuple[float, int]:
    """How far sizes are from the wishes, as a sum of shares; of two as far apart the larger one is nearer."""
    shares = (abs(n - wish.asked) / wish.kind.size for wish, n in zip(wishes, kept, strict=True))
    return sum(shares), -sum(kept)
