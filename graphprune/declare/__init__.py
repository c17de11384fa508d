"""Groups declared by hand, bound to a model and checked against its graph."""

from graphprune.declare.declare import declare, trace_with

__all__ = ["declare", "trace_with"]
