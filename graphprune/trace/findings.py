"""A finished trace, looked up by axis: with it, the graph of a model takes time in proportion to its layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from graphprune.trace.axes import Atom, Expr, atoms, length
from graphprune.trace.tracer import Consumption, FunctionCall, Tracer

T = TypeVar("T")


class Findings:
    """What one tracer found, by the atom along which it was found.

    Atoms are divided and united while a trace runs, so this is made when it has ended.
    """

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.consumptions: Mapping[Atom, list[Consumption]] = by_atom(tracer.consumptions, lambda c: c.inner)
        self.calls: Mapping[Atom, list[FunctionCall]] = by_atom(
            (c for c in tracer.functions if c.dims), lambda c: c.dims[c.dim]
        )
        self.norms = by_atom(tracer.norms, lambda norm: norm.axis)
        self.normalised = by_atom(tracer.normalised, lambda expr: expr)
        self.minimums = by_atom(tracer.minimums, lambda pair: pair[0])
        self.valued = by_atom(tracer.valued, lambda pair: pair[0])
        self._consumed = {(name, _key(c.inner)) for c in tracer.consumptions for name in c.params}

    def consumes(self, tensor: str, expr: Expr) -> bool:
        """Whether a product summed over exactly this axis of the tensor."""
        return (tensor, _key(expr)) in self._consumed


def by_atom(things: Iterable[T], axis: Callable[[T], Expr]) -> Mapping[Atom, list[T]]:
    """``things`` in order under every atom of their axis; an atom without any has an empty list."""
    found: dict[Atom, list[T]] = defaultdict(list)
    for thing in things:
        for atom in atoms(axis(thing)):
            found[atom].append(thing)
    return found


def _key(expr: Expr) -> tuple[int, ...]:
    """Equal for expressions of the same atoms and length."""
    return (length(expr), *(id(atom) for atom in atoms(expr)))
