"""How many units a declaration has, from whatever tells it."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.declare.entries import count_entries
from graphprune.declare.patterns import fill
from graphprune.declare.sizes import find_integer
from graphprune.declare.values import Context
from graphprune.declared import DeclaredGroup
from graphprune.graph import Group


def count_units(
    declared: DeclaredGroup, path: str, layer: int | None, completed: Sequence[Group], context: Context
) -> int | None:
    """The number of units in one layer; None, and a problem, where nothing tells it or two numbers contradict."""
    told: dict[str, int | None] = {}
    if isinstance(declared.size, int):
        told["size"] = declared.size
    elif declared.size is not None:
        place = fill(declared.size, layer)
        told[f"'{place}'"] = _read(place, path, context)
    else:
        told.update({f"units of '{g.name}'": g.size for g in completed})
    if declared.entries is not None:
        told[f"entries of '{fill(declared.entries, layer)}'"] = count_entries(declared.entries, path, layer, context)
    if None in told.values():
        return None
    numbers = {number for number in told.values() if number is not None}
    if len(numbers) == 1:
        return numbers.pop()
    where = f" (in layer {layer})" if layer is not None else ""
    if numbers:
        text = "expected one number of units, got " + " and ".join(f"{n} ({what})" for what, n in told.items())
        context.problems.add(f"{path}.size", "sizes", text)
    else:
        text = f"expected the number of units, which nothing here tells. Give 'size'{where}"
        context.problems.add(f"{path}.size", "size", text)
    return None


def _read(place: str, path: str, context: Context) -> int | None:
    found = find_integer(context.model, place)
    if isinstance(found, str):
        context.problems.add(f"{path}.size", "place", f"expected the path of an integer, got '{place}': {found}")
        return None
    value = found[-1]
    if type(value) is not int or value < 2:
        context.problems.add(f"{path}.size", "value", f"expected two units or more, but '{place}' is {value!r}")
        return None
    return value
