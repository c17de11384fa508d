"""Tracing: one forward pass, no weights, no architecture names."""

from graphprune.trace.run import trace

__all__ = ["trace"]
