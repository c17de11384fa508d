"""Where an atom lies inside an axis expression: from expressions to strided blocks and to size polynomials."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from graphprune.graph import Block
from graphprune.trace.axes import Atom, Concat, Expr, Factor, length, resolve

Polynomial = dict[tuple[str, ...], Fraction]


def places(expr: Expr) -> dict[Atom, list[Block]]:
    """For every atom of an expression, the blocks of indices that its units occupy."""
    found: dict[Atom, list[Block]] = {}
    _walk(resolve(expr), 0, 1, (), found)
    return {atom: sorted(blocks, key=lambda b: b.start) for atom, blocks in found.items()}


def _walk(
    expr: Expr, start: int, stride: int, loops: tuple[tuple[int, int], ...], found: dict[Atom, list[Block]]
) -> None:
    strides: list[int] = []
    for factor in reversed(expr):
        strides.insert(0, stride)
        stride *= factor.size
    for i, factor in enumerate(expr):
        around = loops + tuple((f.size, s) for j, (f, s) in enumerate(zip(expr, strides, strict=True)) if j != i)
        if isinstance(factor, Atom):
            block = Block(start=start, unit_stride=strides[i], loops=_merged(around))
            found.setdefault(factor.root(), []).append(block)
        else:
            offset = start
            for piece in factor.pieces:
                _walk(resolve(piece), offset, strides[i], around, found)
                offset += length(piece) * strides[i]


def _merged(loops: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Adjacent loops that together run without a gap become one."""
    out: list[tuple[int, int]] = []
    for count, stride in sorted(loops, key=lambda loop: -loop[1]):
        if out and out[-1][1] == count * stride:
            out[-1] = (out[-1][0] * count, stride)
        elif count > 1:
            out.append((count, stride))
    return tuple(out)


def polynomial(expr: Expr, name: Callable[[Atom], str | None]) -> Polynomial:
    """The length of an expression as a polynomial over the sizes of named atoms; unnamed atoms are constants."""
    total: Polynomial = {(): Fraction(1)}
    for factor in resolve(expr):
        total = times(total, _factor(factor, name))
    return total


def _factor(factor: Factor, name: Callable[[Atom], str | None]) -> Polynomial:
    if isinstance(factor, Concat):
        total: Polynomial = {}
        for piece in factor.pieces:
            for key, coefficient in polynomial(piece, name).items():
                total[key] = total.get(key, Fraction(0)) + coefficient
        return total
    own = name(factor)
    return {(): Fraction(factor.size)} if own is None else {(own,): Fraction(1)}


def times(left: Polynomial, right: Polynomial) -> Polynomial:
    """The product of two polynomials."""
    product: Polynomial = {}
    for a, x in left.items():
        for b, y in right.items():
            key = tuple(sorted(a + b))
            product[key] = product.get(key, Fraction(0)) + x * y
    return product
