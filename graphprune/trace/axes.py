"""Axis expressions: what the length of a tensor dimension is made of.

An *expression* is a product of factors, outermost first. A factor is an :class:`Atom` (an indivisible axis, until
something divides it) or a :class:`Concat` (pieces laid end to end, each an expression). The empty product is an axis
of length one. Nothing is ever stored per index, so an axis of a billion positions costs as much as one of two.

Refinement is lazy. When a view splits an axis, or a slice cuts it, the atom gets a *definition* (a product or a
concatenation of new atoms), and every tensor that carries the atom sees the finer structure through :func:`resolve`.
Two atoms that must stay aligned are united (union-find). Four operations suffice: :func:`split`, :func:`cut`,
:func:`unify` and :func:`regroup`; each raises :class:`AxisConflict` rather than guess, unless nothing stored depends
on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


class AxisConflict(Exception):  # noqa: N818 - internal signal, turned into frozen groups by the tracer
    """Two axes cannot be brought into one structure."""


class Atom:
    """One axis of ``size`` positions; ``flags`` say what operations have done along it."""

    __slots__ = ("_definition", "_flags", "_parent", "size")

    def __init__(self, size: int, flags: Iterable[str] = ()) -> None:
        self.size = size
        self._parent: Atom | None = None
        self._definition: Expr | None = None
        self._flags: set[str] = set(flags)

    def root(self) -> Atom:
        """The representative of all atoms united with this one."""
        atom = self
        while atom._parent is not None:
            if atom._parent._parent is not None:
                atom._parent = atom._parent._parent
            atom = atom._parent
        return atom

    @property
    def flags(self) -> set[str]:
        """The flags of the whole class of united atoms."""
        return self.root()._flags

    @property
    def definition(self) -> Expr | None:
        """What this atom, which represents its class, was divided into; None while it is whole."""
        return self._definition

    def __repr__(self) -> str:
        return f"Atom({self.size}@{id(self.root()) % 9973})"


@dataclass(frozen=True, eq=False)
class Concat:
    """Pieces laid end to end."""

    pieces: tuple[Expr, ...]

    @property
    def size(self) -> int:
        """The sum of the pieces' lengths."""
        return sum(length(piece) for piece in self.pieces)


Factor = Atom | Concat
Expr = tuple[Factor, ...]
UNIT: Expr = ()
NOTHING: Expr = (Concat(()),)


def fresh(size: int, *flags: str) -> Expr:
    """A new axis of ``size`` positions; length one is the empty product."""
    return (Atom(size, flags),) if size != 1 else UNIT


def length(expr: Expr) -> int:
    """The number of positions of an expression."""
    return math.prod(factor.size for factor in expr)


def resolve(expr: Expr) -> Expr:
    """The canonical form: definitions substituted, products flattened, common inner factors pulled out."""
    out: list[Factor] = []
    for factor in expr:
        if isinstance(factor, Atom):
            root = factor.root()
            out.extend((root,) if root._definition is None else resolve(root._definition))
        else:
            out.extend(concat(factor.pieces))
    return tuple(f for f in out if f.size != 1)


def concat(pieces: Sequence[Expr]) -> Expr:
    """The canonical expression for ``pieces`` laid end to end."""
    flat: list[Expr] = []
    for piece in map(resolve, pieces):
        if len(piece) == 1 and isinstance(piece[0], Concat):
            flat.extend(piece[0].pieces)
        elif length(piece):
            flat.append(piece)
    if not flat:
        return NOTHING
    if len(flat) == 1:
        return flat[0]
    inner: list[Factor] = []
    while all(flat) and all(_equal(piece[-1], flat[0][-1]) for piece in flat):
        inner.insert(0, flat[0][-1])
        flat = [piece[:-1] for piece in flat]
    return (Concat(tuple(flat)), *inner)


def _equal(left: Factor, right: Factor) -> bool:
    """Whether two resolved factors are the same; concatenations may be written down twice."""
    if left is right:
        return True
    if isinstance(left, Atom) or isinstance(right, Atom) or len(left.pieces) != len(right.pieces):
        return False
    pairs = zip(left.pieces, right.pieces, strict=True)
    return all(len(a) == len(b) and all(map(_equal, a, b)) for a, b in pairs)


def _define(atom: Atom, definition: Expr) -> None:
    if any(inner is atom for inner in atoms(definition)):
        raise AxisConflict(f"axis of size {atom.size} would contain itself")
    for inner in atoms(definition):
        inner.flags.update(atom._flags)
    atom._definition = definition


def atoms(expr: Expr) -> list[Atom]:
    """Every distinct atom of an expression, outermost first."""
    found: dict[int, Atom] = {}
    for factor in resolve(expr):
        nested = [factor] if isinstance(factor, Atom) else [a for p in factor.pieces for a in atoms(p)]
        found.update((id(a), a) for a in nested)
    return list(found.values())


def split(factor: Factor, outer: int) -> tuple[Expr, Expr]:
    """Divides a factor of size n into an outer axis of ``outer`` and an inner axis of ``n / outer`` positions."""
    if factor.size % outer:
        raise AxisConflict(f"an axis of {factor.size} cannot be split into {outer} equal parts")
    inner = factor.size // outer
    if isinstance(factor, Atom):
        halves = fresh(outer), fresh(inner)
        _define(factor, halves[0] + halves[1])
        return halves
    heads: list[Expr] = []
    tails: list[Expr] = []
    pieces = list(factor.pieces)
    while pieces:
        piece = pieces.pop(0)
        size = length(piece)
        if size % inner == 0:
            head, tail = regroup([piece], [size // inner, inner])
        else:  # a run that goes on in the next pieces
            tail, rest = cut(concat([piece, *pieces]), inner)
            head, pieces = UNIT, _pieces(rest)
        heads.append(head)
        tails.append(tail)
    for tail in tails[1:]:
        unify(tails[0], tail)
    return concat(heads), resolve(tails[0])


def _pieces(expr: Expr) -> list[Expr]:
    if len(expr) == 1 and isinstance(expr[0], Concat):
        return list(expr[0].pieces)
    return [expr]


def cut(expr: Expr, at: int) -> tuple[Expr, Expr]:
    """Cuts an expression into its first ``at`` positions and the rest."""
    expr = resolve(expr)
    if at == 0:
        return NOTHING, expr
    if at == length(expr):
        return expr, NOTHING
    if not expr:
        raise AxisConflict("an axis of length one cannot be cut")
    first, rest = expr[0], expr[1:]
    run = length(rest)
    if at % run:
        raise AxisConflict(f"a cut at {at} falls inside a run of {run} positions")
    left, right = _cut_factor(first, at // run)
    return left + rest, right + rest


def _cut_factor(factor: Factor, at: int) -> tuple[Expr, Expr]:
    if isinstance(factor, Atom):
        parts = fresh(at), fresh(factor.size - at)
        _define(factor, (Concat(parts),))
        return parts
    left: list[Expr] = []
    pieces = list(factor.pieces)
    while at:
        piece = pieces.pop(0)
        size = length(piece)
        if size > at:
            piece, remainder = cut(piece, at)
            pieces.insert(0, remainder)
            size = at
        left.append(piece)
        at -= size
    return concat(left), concat(pieces)


def matters(expr: Expr) -> bool:
    """Whether a parameter or buffer has a part in this axis; positions in the text, say, have none."""
    return any("stored" in atom.flags for atom in atoms(expr))


def unify(left: Expr, right: Expr) -> None:
    """Makes two expressions of equal length the same axis, refining both as far as needed.

    Axes through which no stored tensor runs may contradict each other: nothing depends on them.
    """
    if length(left) != length(right):
        raise AxisConflict(f"axes of {length(left)} and {length(right)} positions cannot be the same")
    try:
        _unify(left, right)
    except AxisConflict:
        if matters(left) or matters(right):
            raise


def _unify(left: Expr, right: Expr) -> None:
    while True:
        a, b = resolve(left), resolve(right)
        while a and b and _equal(a[0], b[0]):
            a, b = a[1:], b[1:]
        if not a or not b:
            return
        x, y = a[0], b[0]
        if x.size == y.size:
            _unite(x, y)
            left, right = a[1:], b[1:]
        else:
            halves = sum(split(max(x, y, key=lambda f: f.size), min(x.size, y.size)), UNIT)
            left, right = (halves + a[1:], b) if x.size > y.size else (a, halves + b[1:])


def _unite(x: Factor, y: Factor) -> None:
    if isinstance(x, Atom) and isinstance(y, Atom):
        x, y = x.root(), y.root()
        if x is not y:
            y._parent = x
            x._flags |= y._flags
    elif isinstance(x, Atom):
        _define(x.root(), (y,))
    elif isinstance(y, Atom):
        _define(y.root(), (x,))
    else:
        _align(list(x.pieces), list(y.pieces))


def _align(left: list[Expr], right: list[Expr]) -> None:
    while left and right:
        a, b = left.pop(0), right.pop(0)
        short = min(length(a), length(b))
        if length(a) > short:
            a, remainder = cut(a, short)
            left.insert(0, remainder)
        if length(b) > short:
            b, remainder = cut(b, short)
            right.insert(0, remainder)
        unify(a, b)


def regroup(dims: Sequence[Expr], sizes: Sequence[int]) -> list[Expr]:
    """The expressions of a view: the same positions in the same order under new dimension sizes."""
    out: list[Expr] = []
    for old, new in _runs(dims, sizes):
        out.extend(_regrouped(old, new))
    return out


def _regrouped(dims: list[Expr], sizes: list[int]) -> list[Expr]:
    try:
        return _regroup(dims, sizes)
    except AxisConflict:
        if any(map(matters, dims)):
            raise
        return [fresh(n) for n in sizes]


def _runs(dims: Sequence[Expr], sizes: Sequence[int]) -> Iterator[tuple[list[Expr], list[int]]]:
    """Divides a view into the shortest runs of old dimensions that hold as many positions as a run of new ones."""
    old, new = list(dims), list(sizes)
    while old or new:
        left, right = ([old.pop(0)] if old else []), ([new.pop(0)] if new else [])
        while (positions := math.prod(map(length, left))) != math.prod(right):
            if positions < math.prod(right) and old:
                left.append(old.pop(0))
            elif new:
                right.append(new.pop(0))
            else:
                raise AxisConflict(f"a view to {tuple(sizes)} runs out of positions")
        yield left, right


def _regroup(dims: Sequence[Expr], sizes: Sequence[int]) -> list[Expr]:
    factors = [factor for expr in dims for factor in resolve(expr)]
    out: list[Expr] = []
    for size in sizes:
        taken: list[Factor] = []
        missing = size
        while missing > 1:
            if not factors:
                raise AxisConflict(f"a view to {tuple(sizes)} runs out of positions")
            factor = factors.pop(0)
            if missing % factor.size == 0:
                taken.append(factor)
                missing //= factor.size
            else:
                common = math.gcd(missing, factor.size)
                if common != missing:
                    raise AxisConflict(f"a view to {tuple(sizes)} regroups {factor.size} across dimensions")
                head, tail = split(factor, missing)
                taken.extend(head)
                factors[:0] = tail
                missing = 1
        out.append(tuple(taken))
    return out


def narrow(expr: Expr, start: int, stop: int) -> Expr:
    """The positions ``start..stop`` of an expression."""
    try:
        _, tail = cut(expr, start)
        head, _ = cut(tail, stop - start)
    except AxisConflict:
        if matters(expr):
            raise
        return fresh(stop - start)
    return resolve(head)


def strided(expr: Expr, start: int, step: int) -> Expr:
    """Every ``step``-th position from ``start < step``; the step becomes an axis of its own."""
    size = length(expr)
    if size % step or not 0 <= start < step:
        raise AxisConflict(f"positions {start}::{step} of an axis of {size} are no regular sub-axis")
    outer, inner = regroup([expr], [size // step, step])
    if step > 1:
        narrow(inner, start, start + 1)
    return outer
