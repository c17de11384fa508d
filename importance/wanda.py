"""Weights times the norms of their inputs."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from graphprune.errors import CriterionError
from graphprune.graph import Group, Member
from graphprune.importance._tiles import exact, sum_tiles
from graphprune.importance.base import Criterion, Observation, Options, Signal


class WandaOptions(Options):
    """Options of :class:`Wanda`."""

    members: Literal["all", "consumers"] = Field(
        "all",
        description="all: every matrix of the unit. consumers: only the columns that read the unit's output, "
        "the form used as a baseline by An et al. 2024 (FLAP).",
    )


class Wanda(Criterion):
    """A Simple and Effective Pruning Approach for Large Language Models, Sun et al. 2024, in structured form.

    The score of a weight (Eq. 1) is ``S_ij = |W_ij| · ‖X_j‖₂``, with ‖X_j‖₂ the norm of input feature j over
    all calibration tokens. A unit's score is the mean of S over all weights that go with it.

    Only matrices of layers whose input is observed count: biases, norm weights, lookup tables and
    convolutions do not. A group in which no matrix counts, or whose outputs are read by a matrix with
    unobserved input (a stack of expert matrices that is used as a raw parameter), cannot be scored and is an
    error.

    https://arxiv.org/abs/2306.11695; structured baseline: https://arxiv.org/abs/2312.11983
    """

    name: ClassVar[str] = "wanda"
    options_model: ClassVar[type[Options]] = WandaOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/2306.11695"
    options: WandaOptions

    @property
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.WEIGHT, Signal.INPUT_NORM})

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        members = group.members if self.options.members == "all" else group.consumers
        scored = [(m, norm) for m in members if (norm := seen.input_norm(m.tensor)) is not None]
        _check(group, members, [m for m, _ in scored], seen)
        total, count = torch.zeros(group.size), torch.zeros(group.size)
        for member, norm in scored:
            shape = seen.shape(member.tensor)
            total += _summed(member, shape, norm, seen).float().to(total.device)
            count += member.gather(torch.ones(member.length)) * shape[1 - member.dim]
        return total / count


def _summed(member: Member, shape: torch.Size, norm: torch.Tensor, seen: Observation) -> torch.Tensor:
    inputs = member.dim if member.consumes else 1 - member.dim
    if len(shape) != 2 or norm.shape != (shape[inputs],):
        raise CriterionError(
            f"criterion 'wanda' expected {shape[inputs]} input norms for dimension {inputs} of "
            f"'{member.tensor}' of shape {tuple(shape)}, got {tuple(norm.shape)}. "
            "Choose another criterion for this group."
        )

    def tile(start: int, stop: int) -> torch.Tensor:
        rows = exact(seen.weight_rows(member.tensor, start, stop)).abs()
        return rows * (norm if inputs == 1 else norm[start:stop, None])

    return member.gather(sum_tiles(member, shape, norm.device, tile))


def _check(group: Group, members: tuple[Member, ...], scored: list[Member], seen: Observation) -> None:
    blind = [m.tensor for m in members if m.consumes and m not in scored]
    if scored and not any(m.consumes for m in scored):
        # The rows of a router alone say nothing about the expert matrices behind it.
        blind += [m.tensor for m in members if m not in scored and len(seen.shape(m.tensor)) > 2]
    if blind or not scored:
        where = f"the inputs of '{blind[0]}' are not observed" if blind else "no matrix has observed inputs"
        raise CriterionError(
            f"criterion 'wanda' cannot score group '{group.name}': {where}. "
            "Choose taylor, magnitude or gate for this group."
        )
