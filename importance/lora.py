"""The LoRA-guided criterion of LoRAPrune."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field

from graphprune.errors import CriterionError
from graphprune.graph import Group, Member
from graphprune.importance._aggregate import aggregate
from graphprune.importance._tiles import exact, sum_tiles, tile_rows
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
            weight = low_rank.updated(start, stop, seen.weight_rows(member.tensor, start, stop))
            product = low_rank.surrogate(start, stop).mul_(weight)
            return product.square_() if self.options.variant == "paper" else product.abs_()

        units = member.gather(sum_tiles(member, low_rank.shape, low_rank.device, tile))
        if self.options.variant == "reference":
            norm = units.norm()
            return units / norm if norm > 0 else units
        return units


class _LowRank:
    """Rows of W + s·BA and of the gradient surrogate of one adapted tensor, in the tensor's stored layout.

    The tensor is seen as a matrix (E·n, m): E stacked matrices, E = 1 for a plain one. Both kinds of rows are written
    to memory that the next call overwrites: allocating them anew for every tile costs as much as computing them.
    """

    def __init__(self, factors: LoraFactors) -> None:
        a, b = exact(factors.a), exact(factors.b)
        grad_a, grad_b = exact(factors.grad_a), exact(factors.grad_b)
        #: s·BA = left · right of the first pair, the surrogate of the second
        self._update = (b * factors.scaling, a)
        self._surrogate = (torch.cat([grad_b, b - grad_b], dim=-1), torch.cat([a, grad_a], dim=-2))
        if factors.transposed:
            self._update = _transposed(self._update)
            self._surrogate = _transposed(self._surrogate)
        self.shape = (*a.shape[:-2], self._update[0].shape[-2], self._update[1].shape[-1])
        self.device = a.device
        tile = (tile_rows(self.shape, self.device), self.shape[-1])
        self._weight_rows, self._surrogate_rows = a.new_empty(tile), a.new_empty(tile)

    def updated(self, start: int, stop: int, weight: torch.Tensor) -> torch.Tensor:
        """Rows ``start:stop`` of W + s·BA, given those of W."""
        out = self._weight_rows[: stop - start]
        weight = exact(weight).to(out.dtype)
        for rows, left, right in _pieces(self._update, start, stop):
            torch.addmm(weight[rows], left, right, out=out[rows])
        return out

    def surrogate(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of ∂B·A + B·∂A − ∂B·∂A."""
        out = self._surrogate_rows[: stop - start]
        for rows, left, right in _pieces(self._surrogate, start, stop):
            torch.mm(left, right, out=out[rows])
        return out


def _pieces(
    factors: tuple[torch.Tensor, torch.Tensor], start: int, stop: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """The parts of rows ``start:stop`` that lie in one matrix of a stack: where in the tile, and their factors."""
    left, right = factors
    if left.ndim == 2:
        yield slice(None), left[start:stop], right
        return
    rows = left.shape[-2]
    for expert in range(start // rows, (stop - 1) // rows + 1):
        first, last = max(start, expert * rows), min(stop, (expert + 1) * rows)
        inside = slice(first - expert * rows, last - expert * rows)
        yield slice(first - start, last - start), left[expert, inside], right[expert]


def _transposed(factors: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = factors
    return right.transpose(-1, -2), left.transpose(-1, -2)
