"""Graphs of tiny decoders, traced once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

import graphprune as gp
from tests.decoders import tiny


@pytest.fixture(scope="session")
def traced() -> Callable[[str], gp.DependencyGraph]:
    """The graph of a tiny decoder, by the name of its family."""
    return functools.cache(lambda name: gp.trace(tiny(name)))
