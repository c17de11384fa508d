"""Pruning without dependencies, to see what they are worth: every module loses the units that it alone misses least.

The ablation of LLM-Pruner (https://arxiv.org/abs/2305.11627): channel 3 of one matrix is then multiplied with channel 7
of the next. The result has the size of a proper one; it is measured and never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import nn

from graphprune import ranking
from graphprune.errors import SpecError
from graphprune.export.limits import Limits
from graphprune.graph import Axis, DependencyGraph, Group, Member
from graphprune.importance import Criterion, Observation, Signal
from graphprune.names import bare, resolve_tensor
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec
from graphprune.score import Batch, score
from graphprune.validate import resolve_targets

_NOTE = (
    "without dependencies (coupled: false): every module lost units of its own choice; the plan lists them after they "
    "were moved to the same places, and cannot be applied to the original model"
)


def choose_apart(
    model: nn.Module,
    graph: DependencyGraph,
    spec: PruneSpec,
    batches: Iterable[Batch] = (),
    limits: Limits | None = None,
) -> tuple[PrunePlan, dict[str, torch.Tensor]]:
    """Scores every module of a group apart, and moves what each would miss least to where the plan cuts.

    A group loses as many units as it would with dependencies. Of each module the lowest-scored ones go, ties by index,
    and what stays keeps its order.

    Args:
        model: bare, with its weights in full precision; units of its tensors change places.
        graph: its dependency graph.
        spec: as for :func:`graphprune.score`.
        batches: for criteria that need some.
        limits: what the export asks of sizes.

    Returns:
        A plan for the model as it is afterwards, and by group name the summed scores of its modules.

    Raises:
        SpecError: for units that only exist as a whole (layers), and criteria that see only whole units.
    """
    groups = [g for target in resolve_targets(spec, graph) for g in target.groups]
    apart = _Apart(spec.criterion.build())
    _check(groups, apart)
    total = score(model, graph, spec, batches, criterion=apart)
    plan = ranking.plan(graph, spec, total, limits=limits)
    for group in groups:
        removed = plan.removed.get(group.name, ())
        for members, scores in zip(structures(group), apart.found[group.name], strict=True):
            own = scores.sort(stable=True).indices[: len(removed)].tolist()
            for member in members:
                _move(model, graph.tied.get(member.tensor, member.tensor), member.dim, places(member, removed, own))
    return plan.model_copy(update={"notes": (*plan.notes, _NOTE)}), total


def structures(group: Group) -> list[tuple[Member, ...]]:
    """The members of a group that have to agree even so: those of one side of one module (a weight and its bias)."""
    found: dict[tuple[str, bool], list[Member]] = {}
    for member in group.members:
        found.setdefault((member.tensor.rpartition(".")[0], member.consumes), []).append(member)
    return [tuple(members) for members in found.values()]


def places(axis: Axis, removed: Sequence[int], own: Sequence[int]) -> torch.Tensor:
    """For every index of a dimension, which index moves there: units ``own`` to ``removed``, others in order.

    Returns:
        int64 of shape ``(axis.length,)``, a permutation.
    """
    gone, leaving = set(removed), set(own)
    targets = [*sorted(gone), *(u for u in range(axis.size) if u not in gone)]
    sources = [*sorted(leaving), *(u for u in range(axis.size) if u not in leaving)]
    order = torch.arange(axis.length)
    for target, source in zip(targets, sources, strict=True):
        order[axis.indices(target)] = axis.indices(source)
    return order


class _Apart(Criterion):
    """Another criterion, asked about one structure at a time; its scores are kept, summed over batches."""

    name = "apart"
    reference_url = "https://arxiv.org/abs/2305.11627"

    def __init__(self, judge: Criterion) -> None:
        super().__init__(judge.options)
        self.judge = judge
        self.found: dict[str, list[torch.Tensor]] = {}

    @property
    def signals(self) -> frozenset[Signal]:
        return self.judge.signals

    @property
    def expectation(self) -> Literal["gradient", "batch", "sample"]:
        return self.judge.expectation

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        parts = [group.model_copy(update={"members": members}) for members in structures(group)]
        scores = [self.judge.score(part, seen).detach().to("cpu", torch.float32) for part in parts]
        before = self.found.get(group.name, [torch.zeros(group.size)] * len(scores))
        self.found[group.name] = [old + new for old, new in zip(before, scores, strict=True)]
        return torch.stack(scores).sum(dim=0)


def _check(groups: Sequence[Group], apart: _Apart) -> None:
    problems = [
        f"coupled: false: units of '{g.name}' are whole modules, which have nothing to be apart from. Target others."
        for g in groups
        if g.stacks or any(m.only is not None for m in g.members)
    ]
    if Signal.MASK_GRADIENT in apart.signals:
        problems.append(
            f"coupled: false: criterion '{apart.judge.name}' judges whole units and cannot tell the modules of a group "
            "apart. Choose one that reads weights, such as taylor, lora, wanda or magnitude."
        )
    if problems:
        raise SpecError(problems)


def _move(model: nn.Module, tensor: str, dim: int, order: torch.Tensor) -> None:
    values = resolve_tensor(bare(model), tensor).data
    values.copy_(values.index_select(dim, order.to(values.device)))
