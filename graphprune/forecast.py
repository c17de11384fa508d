"""What a spec will make of a model, as far as sizes alone can tell."""

from __future__ import annotations

import torch
from torch import nn

from graphprune import ranking
from graphprune.engine.modes import needs_data
from graphprune.engine.prepare import positions
from graphprune.errors import SpecError
from graphprune.export.fit import Fit
from graphprune.graph import DependencyGraph
from graphprune.inventory import layers_text, plural
from graphprune.schema import PruneSpec
from graphprune.validate import resolve_targets


def preview(spec: PruneSpec, graph: DependencyGraph, fitted: Fit | None = None) -> list[str]:
    """One line per target: how many units of how many groups stay, which does not depend on scores.

    Args:
        spec: what is wanted.
        graph: of the model.
        fitted: what became of ``spec`` so that the result can be loaded (:func:`graphprune.export.fit.fit`).

    Raises:
        SpecError: the spec does not fit the graph.
    """
    spec, limits = (spec, None) if fitted is None else (fitted.spec, fitted.limits)
    after = ranking.plan(graph, spec, {g.name: torch.zeros(g.size) for g in graph}, limits=limits).sizes_after()
    lines = []
    for index, item in enumerate(resolve_targets(spec, graph)):
        before, kept = sum(g.size for g in item.groups), sum(after[g.name] for g in item.groups)
        roles = ", ".join(dict.fromkeys(g.role for g in item.groups))
        where = layers_text(g.layer for g in item.groups)
        lines.append(
            f"targets[{index}]: {roles}, {plural(len(item.groups), 'group')}, {where}: {before} -> {kept} units"
        )
    return lines


def check_length(model: nn.Module, spec: PruneSpec, source: str = "spec") -> None:
    """Refuses sequences that are longer than the model can read, if the run reads any.

    Raises:
        SpecError: naming the longest there may be.
    """
    most, length = positions(model), spec.training.sequence_length
    if most is not None and length > most and needs_data(spec):
        told = f"training.sequence_length: expected at most {most}, the positions this model knows, got {length}"
        raise SpecError(told, source)
