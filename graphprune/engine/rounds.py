"""One-shot pruning in rounds: every round scores what the rounds before have left, and removes its share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from graphprune import ranking
from graphprune.errors import PlanError
from graphprune.export.limits import Limits
from graphprune.graph import DependencyGraph
from graphprune.masking import MaskSet
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec, Training
from graphprune.score import Batch, score
from graphprune.validate import resolve_targets

log = logging.getLogger(__name__)


def choose(
    model: nn.Module,
    graph: DependencyGraph,
    spec: PruneSpec,
    batches: Callable[[int], Sequence[Batch]],
    limits: Limits | None = None,
) -> tuple[PrunePlan, dict[str, torch.Tensor]]:
    """The plan at the target, and the scores of the last round; nothing of the model changes.

    After round i of n, ``i/n`` of the amount is gone, to the nearest unit, and silenced by masks in the rounds that
    follow; the last round reaches the target exactly. As ``iterative_steps`` in LLM-Pruner
    (https://arxiv.org/abs/2305.11627), which cuts in between: a cut model and a masked one score alike, but for
    criteria of weights alone, which still see those of silenced units.

    Args:
        model: bare, quantised or not.
        graph: its dependency graph.
        spec: ``training.rounds`` and what :func:`graphprune.score` reads.
        batches: the calibration batches of a round, counted from 0.
        limits: what the export asks of sizes.

    Raises:
        PlanError: before anything is scored, for groups that cannot be masked, where there are several rounds.
    """
    rounds = spec.training.rounds
    if rounds > 1:
        _check_masks(model, graph, spec)
    plan, scores = None, {}
    for index in range(rounds):
        scores = score(model, graph, spec, batches(index), gone=plan)
        plan = ranking.plan(graph, spec, scores, fraction=(index + 1) / rounds, base=plan, limits=limits)
        if rounds > 1:
            log.info("round %d of %d: %s gone", index + 1, rounds, plan)
    assert plan is not None
    return plan, scores


def batches_of_round(training: Training, available: int, index: int) -> list[int]:
    """Which of ``available`` calibration batches round ``index`` reads: the next, in a circle.

    Fewer than ``calibration_batches`` where there are not so many.
    """
    count = min(training.calibration_batches, available)
    return [(index * count + n) % available for n in range(count)]


def _check_masks(model: nn.Module, graph: DependencyGraph, spec: PruneSpec) -> None:
    names = [g.name for target in resolve_targets(spec, graph) for g in target.groups]
    try:
        MaskSet(model, graph, names)
    except PlanError as error:
        raise PlanError(f"training.rounds {spec.training.rounds}: {error}. Or use one round.") from None
