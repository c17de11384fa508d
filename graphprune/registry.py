"""A typed, lazy registry with refused collisions, entry points and did-you-mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from graphprune.errors import CriterionError, GraphPruneError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to objects; third-party objects come from an entry-point group and are imported on first use.

    Args:
        kind: what is registered, in the singular, for messages ("criterion").
        entry_point_group: the packaging entry-point group that other distributions register in.
        error: the error class raised for unknown names.
    """

    def __init__(self, kind: str, entry_point_group: str, error: type[GraphPruneError] = CriterionError) -> None:
        self.kind = kind
        self._group = entry_point_group
        self._error = error
        self._items: dict[str, T] = {}
        self._pending: dict[str, EntryPoint] | None = None

    def register(self, name: str, item: T) -> T:
        """Registers ``item`` under ``name``; a second, different item under the same name is refused."""
        if name in self._items and self._items[name] is not item:
            raise self._error(
                f"{self.kind} '{name}' is registered twice: {self._items[name]!r} and {item!r}. "
                "Give one of them another name."
            )
        self._items[name] = item
        return item

    def names(self) -> tuple[str, ...]:
        """All known names, sorted, without importing third-party packages."""
        return tuple(sorted({*self._items, *self._discovered()}))

    def get(self, name: str) -> T:
        """The object registered as ``name``.

        Raises:
            GraphPruneError: of the registry's error class, for an unknown name, with the nearest known ones.
        """
        if name not in self._items and name in self._discovered():
            self.register(name, self._discovered()[name].load())
        if name not in self._items:
            raise self._error(self.unknown(name))
        return self._items[name]

    def unknown(self, name: str) -> str:
        """The message for an unknown name: nearest matches first, then everything there is."""
        near = difflib.get_close_matches(name, self.names(), n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self.names())}."

    def load_all(self) -> dict[str, T]:
        """Every registered object by name, third-party ones imported."""
        return {name: self.get(name) for name in self.names()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _discovered(self) -> dict[str, EntryPoint]:
        if self._pending is None:
            self._pending = {point.name: point for point in entry_points(group=self._group)}
        return self._pending
