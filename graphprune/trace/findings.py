"""A finished trace, looked up by axis: with it, the graph of a model takes time in proportion to its layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from graphprune.trace.axes import Atom, Expr, atoms
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
        self.averages = by_atom(tracer.averages, lambda expr: expr)
        self.minimums = by_atom(tracer.minimums, lambda pair: pair[0])
        self.alignments = by_atom(tracer.alignments, lambda pair: pair[0])
        self.buffers = by_atom((expr for dims in tracer.buffers.values() for expr in dims), lambda expr: expr)
        self.valued = by_atom(tracer.valued, lambda pair: pair[0])
        self._consumed = {(name, id(atom)) for c in tracer.consumptions for name in c.params for atom in atoms(c.inner)}

    def consumes(self, tensor: str, expr: Expr) -> bool:
        """Whether a product summed over this axis of the tensor, alone or together with others."""
        parts = atoms(expr)
        return bool(parts) and all((tensor, id(atom)) in self._consumed for atom in parts)


def by_atom(things: Iterable[T], axis: Callable[[T], Expr]) -> Mapping[Atom, list[T]]:
    """``things`` in order under every atom of their axis; an atom without any has an empty list."""
    found: dict[Atom, list[T]] = defaultdict(list)
    for thing in things:
        for atom in atoms(axis(thing)):
            found[atom].append(thing)
    return found
