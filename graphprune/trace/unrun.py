"""Siblings that did not run: what runs through their like may run through them too.

A forward pass that picks experts by Python numbers runs some of a list and leaves the others alone. Axes that reach
from the ones that ran to the rest of the model would reach from the others as well, had they run; cut on one side
only, the model would break the day they do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from graphprune.graph import Member

_DIGITS = re.compile(r"\d+")


class Unrun:
    """Modules that are numbered alike, of which some ran in the traced forward pass and some did not.

    Args:
        tensors: names of all parameters and persistent buffers.
        touched: those that the forward pass met.
    """

    def __init__(self, tensors: Iterable[str], touched: Collection[str]) -> None:
        families: dict[str, dict[str, bool]] = defaultdict(dict)
        for tensor in tensors:
            for family, module in _numbered(tensor):
                ran = families[family].get(module, False)
                families[family][module] = ran or tensor in touched
        self._idle: dict[str, str] = {}
        for members in families.values():
            idle = [module for module, ran in members.items() if not ran]
            if idle and len(idle) < len(members):
                self._idle.update({module: idle[0] for module, ran in members.items() if ran})

    def reasons(self, members: Iterable[Member]) -> list[str]:
        """Why an axis with these members may have more; empty where it stays within one module, or all ran."""
        if not self._idle:
            return []
        inside: dict[str, int] = defaultdict(int)
        count = 0
        for member in members:
            count += 1
            for _, module in _numbered(member.tensor):
                inside[module] += module in self._idle
        idle = sorted({self._idle[module] for module, n in inside.items() if 0 < n < count})
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        return [f"'{idle[0]}'{more} did not run in the traced forward pass and may have this axis"] if idle else []


def _numbered(tensor: str) -> Iterator[tuple[str, str]]:
    """Every numbered module that holds a tensor: (what it is called but for its number, its path)."""
    parts = tensor.split(".")[:-1]
    for depth, name in enumerate(parts):
        if _DIGITS.search(name):
            yield ".".join([*parts[:depth], _DIGITS.sub("#", name)]), ".".join(parts[: depth + 1])
