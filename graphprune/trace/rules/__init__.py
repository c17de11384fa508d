"""How ATen operations move axes; one file per kind of operation, collected in one table."""

from graphprune.trace.rules import contract, convolve, factory, index, pointwise, reduce, shape
from graphprune.trace.rules.table import RULES, Call, rule

__all__ = ["RULES", "Call", "contract", "convolve", "factory", "index", "pointwise", "reduce", "rule", "shape"]
