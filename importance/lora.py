"""The LoRA-guided criterion of LoRAPrune."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from graphprune.errors import CriterionError
from graphprune.graph import Group, Member
from graphprune.importance._aggregate import aggregate
from graphprune.importance._tiles import exact, sum_tiles
from graphprune.importance.base import Criterion, LoraFactors, Observation, Options, Signal


class LoraOptions(Options):
    """Options of :class:`Lora`."""

    variant: Literal["paper", "reference"] = Field(
        "paper",
        description="paper: squares, plain sum (Eq. 10 and 4). reference: absolute values, the scores of "
        "every matrix divided by their L2 norm before summing, as in the authors' published code.",
    )


class Lora(Criterion):
    """LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning, Zhang et al. 2024.

    With the factors A (r × k), B (d × r) of an adapter, their gradients and the base weight W (d × k), Eq.
    10::

        I_ij = [ (∂B·A + B·∂A − ∂B·∂A)_ij · (W + s·B·A)_ij ]²

    and the importance of a unit is the plain sum of I over everything that goes with it, Eq. 4. The sliding
    average over steps, Eq. 11, is the engine's. No d × k gradient exists at any time: the first factor is the
    rank-2r product ``[∂B, B − ∂B]·[A; ∂A]``, computed in row tiles.

    Where LoRA's scaling s = alpha/r enters. The paper writes z = xW + xBA, without s. In a layer that
    computes xW + s·xBA the weight that a removal takes away is W + s·BA, so the second factor carries s. The
    first factor is one step of gradient descent on the stored factors, expressed as the change of the product
    BA (Eq. 7 to 9, with step size 1); it is used as the paper writes it. It differs from the gradient of the
    effective weight by factors that are the same for all matrices of equal s, so no ranking among them
    changes; the published code does the same.

    ``variant: reference`` ranks as the published code does: absolute values instead of squares, and the
    vector of unit scores of every matrix divided by its own L2 norm before the matrices are summed.

    What counts: matrices with an adapter, and stacks of matrices with one. Biases, norm weights and matrices
    without an adapter contribute nothing. A group without any adapter cannot be scored and is an error.

    https://arxiv.org/abs/2305.18403
    """

    name: ClassVar[str] = "lora"
    options_model: ClassVar[type[Options]] = LoraOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/2305.18403"
    options: LoraOptions

    @property
    def signals(self) -> frozenset[Signal]:
        return frozenset({Signal.WEIGHT, Signal.LORA})

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        vectors = []
        for member in group.members:
            factors = seen.lora(member.tensor)
            if factors is not None:
                vectors.append(self._member(member, factors, seen))
        if not vectors:
            tensors = ", ".join(m.tensor for m in group.members[:4])
            raise CriterionError(
                f"criterion 'lora' needs an adapter on at least one tensor of group '{group.name}', "
                f"found none on {tensors}{', …' if len(group.members) > 4 else ''}. "
                "Adapt more modules (lora.target_modules), leave the group out, or choose another criterion."
            )
        return aggregate(group, vectors, "sum")

    def _member(self, member: Member, factors: LoraFactors, seen: Observation) -> torch.Tensor:
        low_rank = _LowRank(factors)

        def tile(start: int, stop: int) -> torch.Tensor:
            weight = low_rank.update(start, stop).mul_(factors.scaling)
            weight += seen.weight_rows(member.tensor, start, stop)
            product = low_rank.surrogate(start, stop).mul_(weight)
            return product.square_() if self.options.variant == "paper" else product.abs_()

        units = member.gather(sum_tiles(member, low_rank.shape, tile))
        if self.options.variant == "reference":
            norm = units.norm()
            return units / norm if norm > 0 else units
        return units


class _LowRank:
    """Rows of BA and of the gradient surrogate of one adapted tensor, in the tensor's stored layout.

    The tensor is seen as a matrix (E·n, m): E stacked matrices, E = 1 for a plain one.
    """

    def __init__(self, factors: LoraFactors) -> None:
        a, b = exact(factors.a), exact(factors.b)
        grad_a, grad_b = exact(factors.grad_a), exact(factors.grad_b)
        #: BA = left[:, :, :r] · right[:, :r], surrogate = grad_left · grad_right
        self._update = (b, a)
        self._surrogate = (torch.cat([grad_b, b - grad_b], dim=-1), torch.cat([a, grad_a], dim=-2))
        if factors.transposed:
            self._update = _transposed(self._update)
            self._surrogate = _transposed(self._surrogate)
        self.shape = (*a.shape[:-2], self._update[0].shape[-2], self._update[1].shape[-1])

    def update(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of B·A, without scaling."""
        return self._rows(self._update, start, stop)

    def surrogate(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of ∂B·A + B·∂A − ∂B·∂A."""
        return self._rows(self._surrogate, start, stop)

    def _rows(self, factors: tuple[torch.Tensor, torch.Tensor], start: int, stop: int) -> torch.Tensor:
        left, right = factors
        if left.ndim == 2:
            return left[start:stop] @ right
        rows = left.shape[-2]
        pieces = []
        for expert in range(start // rows, (stop - 1) // rows + 1):
            first = expert * rows
            pieces.append(left[expert, max(start - first, 0) : stop - first] @ right[expert])
        return torch.cat(pieces)


def _transposed(factors: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = factors
    return right.transpose(-1, -2), left.transpose(-1, -2)
