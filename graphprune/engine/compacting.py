"""Whether a training cuts its model while it prunes, and what there is to say about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import nn
from transformers import TrainingArguments

from graphprune.engine.compact import Compactor, differs, needs_recoding, obstacle, stays_masked
from graphprune.engine.original import Source
from graphprune.engine.recode import Originals, reader
from graphprune.errors import SpecError
from graphprune.graph import DependencyGraph, Group

Compact = Literal["auto", "always", "never"]


def find_compactor(
    model: nn.Module,
    graph: DependencyGraph,
    groups: Sequence[Group],
    wanted: Compact,
    *,
    args: TrainingArguments,
    optimizer: Any,
    originals: Originals | None,
    say: Callable[[str], object],
) -> Compactor | None:
    """What cuts ``model`` while it is trained, or None where it is pruned by masks alone.

    Args:
        model: as the Trainer has it.
        graph: of the whole model.
        groups: what is going to be pruned.
        wanted: ``training.compact`` of the spec.
        args: of the Trainer.
        optimizer: of the Trainer.
        originals: what :func:`find_originals` gave.
        say: told why units stay masked, and what differs from a training under masks.

    Raises:
        SpecError: if the model cannot be cut and ``wanted`` is ``always``.
    """
    if wanted == "never":
        return None
    why = obstacle(model, groups, optimizer, args)
    if why is not None and wanted == "always":
        raise SpecError(f"training.compact: the model cannot be made smaller while it is trained: {why}. Use auto.")
    if why is not None:
        say(f"pruned by masks until the end of training, because {why}")
        return None
    difference = differs(optimizer)
    if difference is not None:
        say(f"the steps of training are not quite those of a masked model: {difference}")
    for role, reason in dict.fromkeys((g.role, stays_masked(g, model, anew=originals is not None)) for g in groups):
        if reason is not None:
            say(f"{role} is pruned by masks until the end of training, because {reason}")
    if originals is not None:
        roles = ", ".join(dict.fromkeys(g.role for g in groups if needs_recoding(g, model)))
        say(
            f"4-bit layers are coded anew of the original weights wherever {roles} is cut, and compute "
            "a little else than under masks then"
        )
    return Compactor(model, graph, optimizer, originals)


def find_originals(
    model: nn.Module,
    groups: Iterable[Group],
    wanted: Compact,
    original: str | os.PathLike[str] | Source | nn.Module | None,
) -> Originals | None:
    """What reads the full-precision weights, where layers in 4 bits are to be coded anew.

    Args:
        model: with the quantised base.
        groups: what is going to be cut.
        wanted: ``training.compact`` of the spec.
        original: where the weights are; where the base was loaded from by default.
    """
    recoded = wanted == "always" and any(needs_recoding(g, model) for g in groups)
    return reader(model, original) if recoded else None
