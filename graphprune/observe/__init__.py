"""Watching a model while calibration or training batches run, and telling criteria what was seen."""

from graphprune.observe.observer import Observer

__all__ = ["Observer"]
