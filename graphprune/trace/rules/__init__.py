"""How ATen operations move axes; one file per kind of operation, collected in one table."""

from graphprune.trace.rules import choose, contract, convolve, factory, index, pointwise, reduce, shape
from graphprune.trace.rules.table import POINTWISE, RULES, Call, rule, rule_of

__all__ = [
    "POINTWISE",
    "RULES",
    "Call",
    "choose",
    "contract",
    "convolve",
    "factory",
    "index",
    "pointwise",
    "reduce",
    "rule",
    "rule_of",
    "shape",
]
