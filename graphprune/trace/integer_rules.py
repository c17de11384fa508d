"""From observed uses of attributes to rules that say what they must become.

Every use is an equation: a polynomial of attributes equals the length of an axis, which is a polynomial of group
sizes. Attributes that stand alone are known at once; the others follow by division, one unknown at a time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from graphprune.graph import SizeRule
from graphprune.trace.axes import Atom, Expr, length, resolve
from graphprune.trace.integers import Monomial, Source
from graphprune.trace.places import Polynomial, polynomial
from graphprune.trace.tracer import IntegerUse

Name = Callable[[Atom], str | None]


@dataclass
class _Equations:
    """What is known of the attributes that one module reads."""

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
        solved: Polynomial | None = {(): 1}
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
        if all(s in self.known for s in sources):
            return []
        for order in itertools.permutations(sources):
            for runs in _runs(resolve(use.axis), [self.values[s] for s in order]):
                shares = [(s, polynomial(run, self.name)) for s, run in zip(order, runs, strict=True)]
                if all(self.known.get(s, poly) == poly for s, poly in shares):
                    return shares
        return []


def size_rules(uses: list[IntegerUse], values: dict[Source, int], name: Name) -> tuple[SizeRule, ...]:
    """One rule per (attribute, reading module) whose value depends on a named group."""
    rules = []
    for reader in dict.fromkeys(use.reader for use in uses):
        equations = _Equations(values, name)
        equations.solve([use for use in uses if use.reader == reader])
        for (owner, attribute), poly in equations.known.items():
            if set(poly) != {()}:
                terms = tuple((coefficient, key) for key, coefficient in sorted(poly.items()) if key)
                constant = poly.get((), 0)
                rule = SizeRule(owner=owner, attribute=attribute, reader=reader, constant=constant, terms=terms)
                rules.append(rule)
    return tuple(rules)


def _isolated(use: IntegerUse, name: Name) -> tuple[Monomial, Polynomial] | None:
    """``monomial = polynomial`` for a use of the form coefficient·monomial + constant, else None."""
    variable = [(key, c) for key, c in use.terms if key]
    if len(variable) != 1:
        return None
    (monomial, coefficient) = variable[0]
    target = dict(polynomial(use.axis, name))
    target[()] = target.get((), 0) - dict(use.terms).get((), 0)
    target = {key: c for key, c in target.items() if c}
    if any(c % coefficient for c in target.values()):
        return None
    return monomial, {key: c // coefficient for key, c in target.items()}


def _scaled(poly: Polynomial, by: Polynomial, exponent: int) -> Polynomial | None:
    """``poly · by^exponent`` where both are single terms and the result has no fraction, else None."""
    if len(poly) != 1 or len(by) != 1:
        return None
    ((key, coefficient),), ((other, factor),) = poly.items(), by.items()
    powers = Counter(key)
    for group in other:
        powers[group] += exponent
    scale = factor ** abs(exponent)
    if min(powers.values(), default=0) < 0 or (exponent < 0 and coefficient % scale):
        return None
    return {tuple(sorted(powers.elements())): coefficient * scale if exponent > 0 else coefficient // scale}


def _runs(factors: Expr, sizes: list[int]) -> Iterator[list[Expr]]:
    """Ways to divide factors, in order, into runs of the given lengths."""
    if not sizes:
        if not factors:
            yield []
        return
    for i in range(len(factors) + 1):
        if length(factors[:i]) == sizes[0]:
            yield from ([factors[:i], *rest] for rest in _runs(factors[i:], sizes[1:]))
