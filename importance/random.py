"""Random scores."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from pydantic import Field

from graphprune.graph import Group
from graphprune.importance.base import Criterion, Observation, Options, Signal


class RandomOptions(Options):
    """Options of :class:`Random`."""

    seed: int = Field(0, ge=0, description="Another seed gives other scores.")


class Random(Criterion):
    """Uniform random scores: the floor that every criterion has to beat.

    Random pruning is a strong baseline after fine-tuning (Mittal et al. 2018, Recovering from Random
    Pruning). The numbers depend on the seed and the group's name alone, so they are the same in whatever
    order groups are scored, on every machine, and at every step of an iterative run.

    https://arxiv.org/abs/1801.10447
    """

    name: ClassVar[str] = "random"
    options_model: ClassVar[type[Options]] = RandomOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/1801.10447"
    options: RandomOptions

    @property
    def signals(self) -> frozenset[Signal]:
        return frozenset()

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        digest = hashlib.sha256(f"{self.options.seed}\n{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.rand(group.size, generator=generator)
