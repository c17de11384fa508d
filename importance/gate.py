"""The gradient of the mask."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from graphprune.graph import Group
from graphprune.importance.base import Criterion, Observation, Options, Signal


class GateOptions(Options):
    """Options of :class:`Gate`."""

    power: Literal[1, 2] = Field(1, description="1: absolute value (Michel et al.). 2: square (Molchanov et al.).")
    mean_of: Literal["sample", "batch", "gradient"] = Field(
        "batch",
        description="What one-shot scoring averages over the data: scores of samples (Michel et al., one "
        "backward pass per sample), scores of batches (Molchanov et al.), or the gradient itself.",
    )


class Gate(Criterion):
    """The sensitivity of the loss to a gate m_u on every unit, at m_u = 1.

    Are Sixteen Heads Really Better than One?, Michel et al. 2019, and Importance Estimation for Neural
    Network Pruning, Molchanov et al. 2019::

        I_u = E |∂L/∂m_u|                      (Michel et al., section 4.1, Eq. 2)
        I_u = E (∂L/∂m_u)²                     (Molchanov et al., Eq. 8 with gates, section 3.2)

    It is the exact first-order change of the loss when the unit is masked, because the gate multiplies what
    the unit hands on and nothing is assumed of single weights; and no weight gradient is needed. The division
    by each layer's norm that Michel et al. use to compare layers is not part of it: rank per layer, or with
    another scale.

    https://arxiv.org/abs/1905.10650, https://arxiv.org/abs/1906.10771
    """

    name: ClassVar[str] = "gate"
    options_model: ClassVar[type[Options]] = GateOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/1905.10650"
    options: GateOptions

    @property
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.MASK_GRADIENT})

    @property
    def expectation(self) -> Literal["gradient", "batch", "sample"]:
        return self.options.mean_of

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        gradient = seen.mask_gradient(group)
        return (gradient.abs() if self.options.power == 1 else gradient.square()).float()
