"""What a criterion is, and what it may look at."""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict

from graphprune.graph import Group, Member


class Signal(enum.Enum):
    """Side effects of running calibration batches that a criterion can ask for."""

    WEIGHT = "weight"
    LORA = "lora"
    WEIGHT_GRADIENT = "weight_gradient"
    SQUARED_GRADIENT = "squared_gradient"
    INPUT_NORM = "input_norm"
    MASK_GRADIENT = "mask_gradient"


@dataclass(frozen=True)
class LoraFactors:
    """The low-rank factors of one adapted matrix W (d × k, PyTorch layout) and their gradients.

    Shapes: ``a``, ``grad_a`` (r, k); ``b``, ``grad_b`` (d, r). The layer computes ``x Wᵀ + scaling · x Aᵀ
    Bᵀ``. ``transposed`` is true where the stored tensor is Wᵀ (k × d). For a stack of E matrices in one
    tensor (experts), every factor has a leading dimension E.
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor
    grad_b: torch.Tensor
    scaling: float
    transposed: bool = False


class Observation(abc.ABC):
    """What the model and the last batches say about tensors and groups; tensor names are the graph's names.

    A method raises :class:`graphprune.errors.CriterionError` if its signal was not requested or not recorded.
    """

    @abc.abstractmethod
    def weight(self, tensor: str) -> torch.Tensor:
        """The base weight, dequantised, without adapters; the tensor's own shape."""

    def shape(self, tensor: str) -> torch.Size:
        """The shape of :meth:`weight`; an observation of quantised weights dequantises nothing for it."""
        return self.weight(tensor).shape

    def weight_rows(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        """Rows of :meth:`weight` seen as a matrix ``(-1, last dimension)``: (stop − start, last dimension).

        Criteria go through large tensors with it; an observation of quantised weights dequantises only these
        rows.
        """
        weight = self.weight(tensor)
        return weight.reshape(-1, weight.shape[-1])[start:stop]

    def holder(self, tensor: str) -> torch.nn.Module | None:
        """The module that holds the tensor, for criteria that ask for its type; None if unknown."""
        return None

    @abc.abstractmethod
    def gradient(self, tensor: str) -> torch.Tensor:
        """dL/dW of the mean loss of the observed batches; the tensor's own shape, zero for buffers."""

    @abc.abstractmethod
    def squared_gradient(self, tensor: str) -> torch.Tensor:
        """Mean over samples of the squared per-sample gradient (diagonal Fisher); the tensor's own shape."""

    @abc.abstractmethod
    def lora(self, tensor: str) -> LoraFactors | None:
        """The adapter on this tensor, or None where there is none."""

    @abc.abstractmethod
    def input_norm(self, tensor: str) -> torch.Tensor | None:
        """L2 norm over all tokens of every input feature of the layer that holds this matrix: shape (k,)."""

    @abc.abstractmethod
    def mask_gradient(self, group: Group) -> torch.Tensor:
        """dL/dm of the group's mask at m = 1, one per unit: shape (size,), summed over the mask's uses."""

    def member_scores(self, group: Group) -> Sequence[torch.Tensor] | None:
        """What :meth:`MemberCriterion.score_member` gave for the group's members while gradients passed by.

        None where gradients were kept, so that the criterion can look at them now.
        """
        return None


class Options(BaseModel):
    """Base of a criterion's options as they stand in a spec: ``criterion: {name: ..., <options>}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Criterion(abc.ABC):
    """Scores the units of a group; higher means keep.

    Attributes:
        name: the name in specs.
        options_model: the pydantic model of the options.
        signals: what must be observed before :meth:`score` is called.
        reference_url: the publication.
    """

    name: ClassVar[str]
    options_model: ClassVar[type[Options]] = Options
    reference_url: ClassVar[str]

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    @abc.abstractmethod
    def signals(self) -> frozenset[Signal]:
        """What this criterion needs to see; may depend on the options."""

    @property
    def expectation(self) -> Literal["gradient", "batch", "sample"]:
        """Where the mean over data stands in a one-shot score: in the gradient, or over scores.

        Sums and means of gradients differ from sums and means of their absolute values, so publications that
        average the latter say "batch" or "sample" here.
        """
        return "gradient"

    @abc.abstractmethod
    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        """One score per unit: float32 of shape ``(group.size,)``, on any device."""


class MemberCriterion(Criterion):
    """A criterion that judges one slice of one tensor at a time and then combines these judgements.

    Gradients that such a criterion reads need not be kept: each is reduced to unit scores inside the backward pass, as
    soon as it is there, and freed before the next one comes.
    """

    @property
    @abc.abstractmethod
    def degree(self) -> int | None:
        """The k with which a gradient c times as large gives scores c^k times as large; None where there is none.

        Scores with a degree can be averaged over backward calls, whose losses carry factors.
        """

    @abc.abstractmethod
    def score_member(self, member: Member, seen: Observation) -> torch.Tensor:
        """One score per unit for the member's tensor alone: shape ``(member.size,)``; reads no other tensor."""

    @abc.abstractmethod
    def combine(self, group: Group, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The group's scores from those of its members, in their order: float32 of shape ``(group.size,)``."""

    def streams(self, backwards: int) -> bool:
        """Whether the mean over ``backwards`` backward calls of their scores is the score that is wanted.

        True where there is only one, and where the criterion averages scores instead of gradients.
        """
        return self.degree is not None and (backwards == 1 or self.expectation != "gradient")

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        vectors = seen.member_scores(group)
        if vectors is None:
            vectors = [self.score_member(member, seen) for member in group.members]
        return self.combine(group, vectors)
