"""From observed uses of numbers to rules that say what attributes must become, and to axes that contradict others.

Every use is an equation: a polynomial of attributes (and of lengths of other axes) equals the length of an axis, which
is a polynomial of group sizes. Attributes that stand alone are known at once; the others follow by division, one
unknown at a time. An equation without unknowns that does not hold for all group sizes cannot survive pruning: the
forward gives an axis the length of another one, or a number that is written in its code.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from graphprune.graph import SizeRule
from graphprune.trace.axes import Atom, Expr, length, resolve
from graphprune.trace.integers import AXIS, Monomial, Source
from graphprune.trace.places import Polynomial, polynomial, times
from graphprune.trace.tracer import IntegerUse

Name = Callable[[Atom], str | None]


@dataclass
class _Equations:
    """What is known of the numbers that one module reads."""

    values: dict[Source, int]
    name: Name
    known: dict[Source, Polynomial] = field(default_factory=dict)

    def solve(self, uses: list[IntegerUse]) -> None:
        """Finds every attribute that the uses determine."""
        while any(self._learn(use) for use in uses):
            pass
        for use in uses:
            for source, poly in self._shared_out(use):
                self.known.setdefault(source, poly)
        while any(self._learn(use) for use in uses):
            pass

    def violated(self, use: IntegerUse) -> set[str]:
        """The groups by which an equation without unknowns fails to hold for all sizes."""
        expected: Polynomial | None = {}
        for monomial, coefficient in use.terms:
            value = self._value(monomial)
            expected = None if value is None or expected is None else _sum(expected, value, coefficient)
        if expected is None:
            return set()
        difference = _sum(expected, polynomial(use.axis, self.name), Fraction(-1))
        return {group for key, c in difference.items() if c for group in key}

    def _value(self, monomial: Monomial) -> Polynomial | None:
        total: Polynomial | None = {(): Fraction(1)}
        for source, exponent in sorted(monomial, key=lambda power: -power[1]):
            if total is None or source not in self.known:
                return None
            for _ in range(abs(exponent)):
                known = self.known[source]
                total = times(total, known) if exponent > 0 else _scaled(total, known, -1) if total else None
                if total is None:
                    return None
        return total

    def _learn(self, use: IntegerUse) -> bool:
        """Takes one unknown from an equation with a single unknown; whether there was one."""
        equation = _isolated(use, self.name)
        if equation is None:
            return False
        monomial, target = equation
        unknown = [(s, e) for s, e in monomial if s not in self.known]
        if len(unknown) != 1 or abs(unknown[0][1]) != 1:
            return False
        ((source, sign),) = unknown
        powers = [(target, sign), *((self.known[s], -sign * e) for s, e in monomial if s != source)]
        solved: Polynomial | None = {(): Fraction(1)}
        for poly, exponent in sorted(powers, key=lambda power: -power[1]):
            solved = _scaled(solved, poly, exponent) if solved is not None else None
        if len(powers) == 1 and sign == 1:
            solved = target
        if solved is None:
            return False
        self.known[source] = solved
        return True

    def _shared_out(self, use: IntegerUse) -> list[tuple[Source, Polynomial]]:
        """Divides the factors of an axis among several unknown attributes whose product measured it."""
        if len(use.terms) != 1 or use.terms[0][1] != 1 or any(e != 1 for _, e in use.terms[0][0]):
            return []
        sources = [s for s, _ in use.terms[0][0]]
        if all(s in self.known for s in sources) or any(s[0] == AXIS for s in sources):
            return []
        for order in itertools.permutations(sources):
            for runs in _runs(resolve(use.axis), [self.values[s] for s in order]):
                shares = [(s, polynomial(run, self.name)) for s, run in zip(order, runs, strict=True)]
                if all(self.known.get(s, poly) == poly for s, poly in shares):
                    return shares
        return []


FIXED = (
    "the forward of {} gives this axis the length of another one, or a number written in its code, so that it would "
    "not run with fewer units"
)
COMPUTED = "the forward of {} computes with the number of units, so that fewer give other results than silenced ones"


@dataclass(frozen=True)
class Solution:
    """Rules for attributes, and for each group that contradicts the code the reason."""

    rules: tuple[SizeRule, ...]
    contradictions: dict[str, str]


def size_rules(
    uses: Sequence[IntegerUse],
    arithmetic: Sequence[tuple[str, tuple[Monomial, ...]]],
    axes: Sequence[Expr],
    values: dict[Source, int],
    name: Name,
) -> Solution:
    """One rule per (attribute, reading module) whose value depends on a named group.

    Args:
        uses: every observed use.
        arithmetic: numbers that were computed with, by the reading module.
        axes: the axes whose lengths were read, by the number of their source.
        values: every attribute's present value.
        name: the group of an atom, if it can be pruned.
    """
    rules: list[SizeRule] = []
    contradictions: dict[str, str] = {}
    by_reader: dict[str, list[IntegerUse]] = defaultdict(list)
    for use in uses:
        by_reader[use.reader].append(use)
    computed: dict[str, list[Monomial]] = defaultdict(list)
    for reader, monomials in arithmetic:
        computed[reader].extend(monomials)
    for reader in {**by_reader, **computed}:
        own, where = by_reader[reader], reader or "the model"
        equations = _Equations(values, name)
        monomials = (*(m for use in own for m, _ in use.terms), *computed[reader])
        for source in {s for monomial in monomials for s, _ in monomial if s[0] == AXIS}:
            equations.known[source] = polynomial(axes[int(source[1])], name)
        equations.solve(own)
        for use in own:
            contradictions.update(dict.fromkeys(equations.violated(use), FIXED.format(where)))
        sources = {s for monomial in computed[reader] for s, _ in monomial}
        varying = {group for s in sources for key in equations.known.get(s, ()) for group in key}
        contradictions.update(dict.fromkeys(varying, COMPUTED.format(where)))
        rules.extend(_rules(equations.known, reader))
    return Solution(tuple(rules), contradictions)


def _rules(known: dict[Source, Polynomial], reader: str) -> Iterator[SizeRule]:
    for (owner, attribute), poly in known.items():
        whole = all(c.denominator == 1 for c in poly.values())
        if owner != AXIS and set(poly) != {()} and whole:
            terms = tuple((int(coefficient), key) for key, coefficient in sorted(poly.items()) if key)
            constant = int(poly.get((), 0))
            yield SizeRule(owner=owner, attribute=attribute, reader=reader, constant=constant, terms=terms)


def _sum(left: Polynomial, right: Polynomial, factor: Fraction) -> Polynomial:
    total = dict(left)
    for key, coefficient in right.items():
        total[key] = total.get(key, Fraction(0)) + factor * coefficient
    return total


def _isolated(use: IntegerUse, name: Name) -> tuple[Monomial, Polynomial] | None:
    """``monomial = polynomial`` for a use of the form coefficient·monomial + constant, else None."""
    variable = [(key, c) for key, c in use.terms if key]
    if len(variable) != 1:
        return None
    (monomial, coefficient) = variable[0]
    target = dict(polynomial(use.axis, name))
    target[()] = target.get((), Fraction(0)) - dict(use.terms).get((), Fraction(0))
    return monomial, {key: c / coefficient for key, c in target.items() if c}


def _scaled(poly: Polynomial, by: Polynomial, exponent: int) -> Polynomial | None:
    """``poly · by^exponent`` where ``by`` is a single term and no group is left below the line, else None."""
    if len(by) != 1:
        return None
    ((other, factor),) = by.items()
    scaled: Polynomial = {}
    for key, coefficient in poly.items():
        powers = Counter(key)
        for group in other:
            powers[group] += exponent
        if min(powers.values(), default=0) < 0:
            return None
        scaled[tuple(sorted(powers.elements()))] = coefficient * factor**exponent
    return scaled


def _runs(factors: Expr, sizes: list[int]) -> Iterator[list[Expr]]:
    """Ways to divide factors, in order, into runs of the given lengths."""
    if not sizes:
        if not factors:
            yield []
        return
    for i in range(len(factors) + 1):
        if length(factors[:i]) == sizes[0]:
            yield from ([factors[:i], *rest] for rest in _runs(factors[i:], sizes[1:]))
