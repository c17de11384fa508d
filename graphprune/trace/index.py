"""What a trace recorded, by axis: built once, so that large graphs need no search per group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from graphprune.trace.axes import Atom, Expr, atoms
from graphprune.trace.record import Norm
from graphprune.trace.tracer import Consumption, FunctionCall, Tracer

Item = TypeVar("Item")
ByAtom = dict[Atom, list[Item]]


@dataclass(frozen=True)
class Index:
    """The records of a finished trace, by the atoms that occur in them."""

    consumptions: ByAtom[Consumption]
    functions: ByAtom[FunctionCall]
    norms: ByAtom[Norm]
    averages: ByAtom[Expr]
    minimums: ByAtom[int]
    valued: ByAtom[str]
    consumed: dict[str, list[Expr]]  # by parameter: the axes that it was summed over

    @classmethod
    def of(cls, tracer: Tracer) -> Index:
        """The index of everything that ``tracer`` recorded."""
        consumed: dict[str, list[Expr]] = defaultdict(list)
        for c in tracer.consumptions:
            for name in c.params:
                consumed[name].append(c.inner)
        return cls(
            consumptions=_by_atom(tracer.consumptions, lambda c: c.inner),
            functions=_by_atom((f for f in tracer.functions if f.dims), lambda f: f.dims[f.dim]),
            norms=_by_atom(tracer.norms, lambda n: n.axis),
            averages=_by_atom(tracer.averages, lambda expr: expr),
            minimums={a: [n for _, n in found] for a, found in _by_atom(tracer.minimums, lambda m: m[0]).items()},
            valued={a: [w for _, w in found] for a, found in _by_atom(tracer.valued, lambda v: v[0]).items()},
            consumed=dict(consumed),
        )


def _by_atom(items: Iterable[Item], axis: Callable[[Item], Expr]) -> ByAtom[Item]:
    found: ByAtom[Item] = defaultdict(list)
    for item in items:
        for atom in atoms(axis(item)):
            found[atom].append(item)
    return dict(found)
