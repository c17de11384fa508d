"""What a spec will make of a model, as far as sizes alone can tell."""

from __future__ import annotations

import torch
from torch import nn

from graphprune import ranking
from graphprune.engine.modes import needs_data
from graphprune.engine.prepare import positions
from graphprune.errors import SpecError
from graphprune.graph import DependencyGraph
from graphprune.inventory import layers_text, plural
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.schema import PruneSpec
from graphprune.validate import resolve_targets


def preview(spec: PruneSpec, graph: DependencyGraph) -> list[str]:
    """One line per target: how many units of how many groups stay, which does not depend on scores.

    Raises:
        SpecError: the spec does not fit the graph.
    """
    after = _sizes_after(spec, graph)
    lines = []
    for index, item in enumerate(resolve_targets(spec, graph)):
        before, kept = sum(g.size for g in item.groups), sum(after[g.name] for g in item.groups)
        roles = ", ".join(dict.fromkeys(g.role for g in item.groups))
        where = layers_text(g.layer for g in item.groups)
        lines.append(
            f"targets[{index}]: {roles}, {plural(len(item.groups), 'group')}, {where}: {before} -> {kept} units"
        )
    return lines


def stock_obstacle(model: nn.Module, spec: PruneSpec, graph: DependencyGraph) -> str:
    """Why the result will not load with stock ``from_pretrained``; empty if sizes do not speak against it.

    Sizes are not the whole truth: with weights at hand, :func:`graphprune.reshape` also compares outputs.

    Args:
        model: on the meta device, or one that is not needed any more: it is cut.
        spec: checked against ``graph`` before.
        graph: of ``model``.
    """
    if spec.scope != "layer":
        return f"with scope '{spec.scope}' layers may end with different sizes, which most configs cannot express"
    reshape(model, ranking.plan(graph, spec, _no_scores(graph)), graph)
    return history_of(model).why_not


def check_length(model: nn.Module, spec: PruneSpec, source: str = "spec") -> None:
    """Refuses sequences that are longer than the model can read, if the run reads any.

    Raises:
        SpecError: naming the longest there may be.
    """
    most, length = positions(model), spec.training.sequence_length
    if most is not None and length > most and needs_data(spec):
        told = f"training.sequence_length: expected at most {most}, the positions this model knows, got {length}"
        raise SpecError(told, source)


def _sizes_after(spec: PruneSpec, graph: DependencyGraph) -> dict[str, int]:
    return ranking.plan(graph, spec, _no_scores(graph)).sizes_after()


def _no_scores(graph: DependencyGraph) -> dict[str, torch.Tensor]:
    return {g.name: torch.zeros(g.size) for g in graph}
