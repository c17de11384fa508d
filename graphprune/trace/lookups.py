"""Dictionaries by which the forward pass looks layers up by their numbers.

Where layers move up, their numbers change, and with them the keys. That is right only for a dictionary that each layer
asks for its own number: another one may have keys that merely look like numbers of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Place = tuple[str, str]
"""(path of the module, attribute)."""


class Watched(dict[int, Any]):
    """A dictionary that remembers whether it was only asked for the number of the layer that runs."""

    def __init__(self, values: dict[int, Any], running: Callable[[], int | None]) -> None:
        super().__init__(values)
        self._running = running
        self.asked: set[bool] = set()
        """Whether it was asked for the number of the running layer, for each time that it was asked."""

    def _ask(self, key: object) -> None:
        self.asked.add(isinstance(key, int) and int(key) == self._running())

    def __getitem__(self, key: int) -> Any:
        self._ask(key)
        return super().__getitem__(key)

    def get(self, key: int, default: Any = None) -> Any:
        """As for any dictionary."""
        self._ask(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._ask(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[int]:
        self.asked.add(False)
        return super().__iter__()

    def __len__(self) -> int:
        self.asked.add(False)
        return super().__len__()

    def keys(self) -> Any:
        """As for any dictionary."""
        self.asked.add(False)
        return super().keys()

    def values(self) -> Any:
        """As for any dictionary."""
        self.asked.add(False)
        return super().values()

    def items(self) -> Any:
        """As for any dictionary."""
        self.asked.add(False)
        return super().items()


def misunderstood(lookups: Mapping[Place, list[Watched]]) -> Iterator[Place]:
    """The dictionaries whose keys were not seen to be numbers of layers: some layer asked, and each for its own.

    One that nobody asked is believed where its like, of the same name and content, was.
    """
    asked = {place: set().union(*(w.asked for w in seen)) for place, seen in lookups.items()}
    known = [(place[1], dict.items(lookups[place][0])) for place, answers in asked.items() if answers == {True}]
    for (path, name), answers in asked.items():
        alike = not answers and (name, dict.items(lookups[path, name][0])) in known
        if answers != {True} and not alike:
            yield path, name


def numbered(model: nn.Module, count: int) -> Iterator[tuple[str, nn.Module, str]]:
    """Every dictionary of a module whose keys may be numbers of layers: path, module, attribute."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, dict) and value:
                keys = list(dict.keys(value))
                if all(type(k) is int and 0 <= k < count for k in keys):
                    yield path, module, name


def listed(model: nn.Module, stack: str, count: int) -> Iterator[str]:
    """Lists of some layers' numbers, so called, on the modules above the stack, as ``path.attribute``."""
    for path, module in model.named_modules():
        if path and not stack.startswith(f"{path}."):
            continue
        for name, value in vars(module).items():
            some = set(value) if isinstance(value, list | tuple | set | frozenset) and "layer" in name else set()
            if some and len(some) == len(value) and all(type(v) is int and 0 <= v < count for v in some):
                yield f"{path}.{name}".lstrip(".")


@contextmanager
def watched_lookups(
    model: nn.Module, count: int, running: Callable[[], int | None], seen: dict[Place, list[Watched]]
) -> Iterator[None]:
    """Puts :class:`Watched` dictionaries in place of those with numbers of layers for a while, and into ``seen``."""
    planted = [(path, module, name, vars(module)[name]) for path, module, name in numbered(model, count)]
    try:
        for path, module, name, value in planted:
            watched = Watched(value, running)
            seen.setdefault((path, name), []).append(watched)
            vars(module)[name] = watched
        yield
    finally:
        for _, module, name, value in planted:
            vars(module)[name] = value
