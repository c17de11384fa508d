"""Judging a model: perplexity as the literature measures it."""

from graphprune.evaluate.perplexity import perplexity

__all__ = ["perplexity"]
