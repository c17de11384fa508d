"""Declarative, graph-based structured pruning of Hugging Face decoders.

The public names are loaded on first use, so that ``import graphprune`` and the command line start at once.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from graphprune.checkpoint.load import load
    from graphprune.checkpoint.save import save
    from graphprune.compose import compose
    from graphprune.declare import declare
    from graphprune.declared import DeclaredGroup
    from graphprune.engine.callback import PruneCallback
    from graphprune.engine.marks import last_checkpoint
    from graphprune.engine.run import PruneResult, prune
    from graphprune.errors import GraphPruneError
    from graphprune.graph import Block, DependencyGraph, Group, Member
    from graphprune.masking import masked
    from graphprune.plan import PrunePlan
    from graphprune.prove import Proof, prove
    from graphprune.ranking import plan
    from graphprune.reshape import reshape
    from graphprune.schema import PruneSpec
    from graphprune.score import score
    from graphprune.selection import Selection
    from graphprune.specfile import load_spec
    from graphprune.stream.apply import apply
    from graphprune.study.results import Results
    from graphprune.study.run import study
    from graphprune.trace import trace

_HOMES = {
    "Block": "graph",
    "DeclaredGroup": "declared",
    "DependencyGraph": "graph",
    "GraphPruneError": "errors",
    "Group": "graph",
    "Member": "graph",
    "Proof": "prove",
    "PruneCallback": "engine.callback",
    "PrunePlan": "plan",
    "PruneResult": "engine.run",
    "PruneSpec": "schema",
    "Results": "study.results",
    "Selection": "selection",
    "compose": "compose",
    "apply": "stream.apply",
    "declare": "declare",
    "last_checkpoint": "engine.marks",
    "load": "checkpoint",
    "load_spec": "specfile",
    "masked": "masking",
    "plan": "ranking",
    "prove": "prove",
    "prune": "engine.run",
    "reshape": "reshape",
    "save": "checkpoint",
    "score": "score",
    "study": "study.run",
    "trace": "trace",
}

__all__ = [
    "Block",
    "DeclaredGroup",
    "DependencyGraph",
    "GraphPruneError",
    "Group",
    "Member",
    "Proof",
    "PruneCallback",
    "PrunePlan",
    "PruneResult",
    "PruneSpec",
    "Results",
    "Selection",
    "__version__",
    "apply",
    "compose",
    "declare",
    "last_checkpoint",
    "load",
    "load_spec",
    "masked",
    "plan",
    "prove",
    "prune",
    "reshape",
    "save",
    "score",
    "study",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'graphprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """Keeps ``gp.trace`` a function: importing the submodule of the same name would otherwise replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
