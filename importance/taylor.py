"""Taylor expansions of the loss in the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from graphprune.graph import Group, Member
from graphprune.importance._aggregate import Aggregate, aggregate
from graphprune.importance._tiles import exact, sum_tiles
from graphprune.importance.base import MemberCriterion, Observation, Options, Signal


class TaylorOptions(Options):
    """Options of :class:`Taylor`."""

    order: Literal["first", "second", "mixed"] = Field(
        "first", description="Terms of the expansion: gradient, diagonal Fisher information, or both."
    )
    vectorize: bool = Field(
        False,
        description="Sum the signed terms over each row, or column, before taking absolute values.",
    )
    power: Literal[1, 2] = Field(1, description="1: absolute values. 2: squares (LoRAPrune Eq. 3).")
    aggregate: Aggregate = Field("sum", description="How the scores of a group's tensors are combined.")
    mean_of: Literal["gradient", "batch", "sample"] = Field(
        "gradient",
        description="What is averaged over several backward passes: gradients, which have to be kept, or scores of "
        "batches or samples, for which no more than one tensor's gradient is held.",
    )


class Taylor(MemberCriterion):
    """LLM-Pruner: On the Structural Pruning of Large Language Models, Ma et al. 2023, section 3.2.

    With the gradient g of the mean loss over the calibration samples and the diagonal Fisher information
    F = mean over samples of the squared gradient of one sample, the term of a weight w is::

        first:   t = w·g                    second:  t = w·F·w             mixed:   t = w·g − ½·w·F·w

    ``vectorize: false``: the score of a unit in one tensor is Σ |t|^power over its elements.
    ``vectorize: true``: first Σ t over each row that the unit owns (column, where the unit runs over
    columns), then Σ |·|^power over these. The scores of the group's tensors are then combined by
    ``aggregate``.

    LLM-Pruner's param_first, param_second, param_mix are ``order: first | second | mixed``, its vectorize is
    ``{order: first, vectorize: true}``. ``power: 2`` is the criterion (w·g)² of Molchanov et al. 2019 and of
    LoRAPrune Eq. 3. Every parameter counts, biases and norm weights too; buffers and parameters that the loss
    does not reach have zero gradient.

    No gradient outlives the backward pass that made it where there is one backward pass per score, where ``mean_of``
    averages scores, and for ``order: second`` with ``power: 1``, where both means are the same. Means of absolute
    values are not absolute values of means: with several passes ``mean_of: batch`` ranks differently.

    https://arxiv.org/abs/2305.11627
    """

    name: ClassVar[str] = "taylor"
    options_model: ClassVar[type[Options]] = TaylorOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/2305.11627"
    options: TaylorOptions

    @property
    def signals(self) -> frozenset[Signal]:
        needed = {Signal.WEIGHT}
        if self.options.order != "second":
            needed.add(Signal.WEIGHT_GRADIENT)
        if self.options.order != "first":
            needed.add(Signal.SQUARED_GRADIENT)
        return frozenset(needed)

    @property
    def expectation(self) -> Literal["gradient", "batch", "sample"]:
        return self.options.mean_of

    @property
    def degree(self) -> int | None:
        of_term = {"first": 1, "second": 2, "mixed": None}[self.options.order]
        return None if of_term is None else of_term * self.options.power

    def streams(self, backwards: int) -> bool:
        additive = self.options.order == "second" and self.options.power == 1  # no term is negative
        return additive or super().streams(backwards)

    def combine(self, group: Group, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        return aggregate(group, vectors, self.options.aggregate)

    def score_member(self, member: Member, seen: Observation) -> torch.Tensor:
        name, order = member.tensor, self.options.order
        gradient = None if order == "second" else seen.gradient(name)
        fisher = None if order == "first" else seen.squared_gradient(name)
        known = gradient if gradient is not None else _given(fisher)
        shape, device = known.shape, known.device

        def term(start: int, stop: int) -> torch.Tensor:
            weight = exact(seen.weight_rows(name, start, stop))
            first = None if gradient is None else weight * _rows(gradient, start, stop)
            second = None if fisher is None else weight.square() * _rows(fisher, start, stop)
            if first is not None and second is not None:
                return first - second / 2
            return first if first is not None else _given(second)

        if self.options.vectorize:
            return member.gather(self._size(sum_tiles(member, shape, device, term)))
        return member.gather(sum_tiles(member, shape, device, lambda start, stop: self._size(term(start, stop))))

    def _size(self, terms: torch.Tensor) -> torch.Tensor:
        return terms.abs() if self.options.power == 1 else terms.square()


def _rows(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return exact(tensor.reshape(-1, tensor.shape[-1])[start:stop])


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor
