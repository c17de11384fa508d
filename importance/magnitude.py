"""Weight magnitude."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from graphprune.graph import Group, Member
from graphprune.importance._aggregate import Aggregate, aggregate
from graphprune.importance._tiles import exact, sum_tiles
from graphprune.importance.base import Criterion, Observation, Options, Signal


class MagnitudeOptions(Options):
    """Options of :class:`Magnitude`."""

    p: float = Field(1.0, gt=0, description="The norm: 1 for L1, 2 for L2.")
    aggregate: Aggregate = Field("sum", description="How the scores of a group's tensors are combined.")


class Magnitude(Criterion):
    """Pruning Filters for Efficient ConvNets, Li et al. 2017: units with large weights stay.

    ``I_u = Σ_{members} Σ_{w ∈ unit u} |w|^p``, the p-th power of the norm of everything that would be removed,
    which ranks as the norm itself does; the paper's own criterion is the default p = 1. With another ``aggregate``
    the inner sums are combined by it. Every tensor counts: matrices, stacks of expert matrices, biases, norm
    weights, embeddings.

    https://arxiv.org/abs/1608.08710
    """

    name: ClassVar[str] = "magnitude"
    options_model: ClassVar[type[Options]] = MagnitudeOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/1608.08710"
    options: MagnitudeOptions

    @property
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.WEIGHT})

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        return aggregate(group, [self._member(m, seen) for m in group.members], self.options.aggregate)

    def _member(self, member: Member, seen: Observation) -> torch.Tensor:
        def tile(start: int, stop: int) -> torch.Tensor:
            return exact(seen.weight_rows(member.tensor, start, stop)).abs().pow(self.options.p)

        device = seen.weight_rows(member.tensor, 0, 1).device
        return member.gather(sum_tiles(member, seen.shape(member.tensor), device, tile))
