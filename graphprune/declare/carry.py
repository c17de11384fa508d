"""What the trace knows of groups that became part of declared ones: minimums, integers and constants, carried over."""

from __future__ import annotations

from collections import Counter

import torch

from graphprune.declare.join import Board, carried_axis
from graphprune.declare.values import Context
from graphprune.graph import ConstantSlice, Group, SizeRule

Polynomial = dict[tuple[str, ...], int]


def minimum_of(group: Group, inside: torch.Tensor, size: int) -> int:
    """A joined group's minimum in declared units, of which each may be several of its own; others count first."""
    each, rest = share(inside, size)
    return max(1, -(-(group.minimum - rest) // each)) if each else 1


def share(inside: torch.Tensor, size: int) -> tuple[int, int]:
    """How many units of a joined group each declared unit is, and how many lie outside of the declared ones."""
    within = int((inside >= 0).sum())
    return within // size, len(inside) - within


def constants_after(board: Board, context: Context) -> tuple[ConstantSlice, ...]:
    """The graph's constants, those of joined groups under their new name."""
    out = []
    for constant in board.graph.constants:
        name, inside = board.joined.get(constant.group, (constant.group, torch.empty(0)))
        if name in board.declared and constant.group in board.joined:
            axis = carried_axis(constant.axis, inside, board.groups[name].size)
            if axis is None:
                text = (
                    f"argument '{constant.argument}' of '{constant.module}' runs along '{constant.group}', and cannot "
                    "be divided among the declared units"
                )
                context.problems.add(board.declared[name], "constant", text)
                continue
            constant = constant.model_copy(update={"group": name, "axis": axis})
        out.append(constant)
    return tuple(out)


def rules_after(board: Board) -> list[SizeRule]:
    """The graph's rules, with declared groups in place of those that joined them: 64 units are 8 times 8 ones."""
    values: dict[str, Polynomial] = {}
    for old, (new, inside) in board.joined.items():
        each, rest = share(inside, board.groups[new].size)
        values[old] = {(new,): each, (): rest}
    return [_replaced(rule, values) for rule in board.graph.rules]


def _replaced(rule: SizeRule, values: dict[str, Polynomial]) -> SizeRule:
    if not any(name in values for _, names in rule.terms for name in names):
        return rule
    total: Counter[tuple[str, ...]] = Counter({(): rule.constant})
    for coefficient, names in rule.terms:
        product: Polynomial = {(): coefficient}
        for name in names:
            product = _times(product, values.get(name, {(name,): 1}))
        for key, value in product.items():
            total[key] += value
    terms = tuple((value, key) for key, value in sorted(total.items()) if key and value)
    return rule.model_copy(update={"constant": total[()], "terms": terms})


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    product: Counter[tuple[str, ...]] = Counter()
    for a, x in left.items():
        for b, y in right.items():
            product[tuple(sorted((*a, *b)))] += x * y
    return dict(product)


def agreeing(traced: list[SizeRule], rules: list[SizeRule], board: Board, context: Context) -> list[SizeRule]:
    """The declared rules that the trace does not know; a problem for each that it contradicts."""
    known = {(r.owner, r.attribute, r.reader): r for r in traced}
    new = []
    for rule in rules:
        place = (rule.owner, rule.attribute, rule.reader)
        # What a whole model reads may follow one group in every layer; reshaping sees to it that they agree.
        other = known.get(place, rule) if not rule.reader else known.setdefault(place, rule)
        if other is rule:
            new.append(rule)
        elif (other.constant, sorted(other.terms)) != (rule.constant, sorted(rule.terms)):
            names = ", ".join(sorted({n for _, term in other.terms for n in term}))
            text = f"'{rule.owner}.{rule.attribute}' follows {names} otherwise already. Leave it out, or correct it"
            context.problems.add(f"{board.declared[rule.terms[0][1][0]]}.sizes", "contradicted", text)
    return new
