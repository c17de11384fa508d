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
        scratch = _Scratch()
        for member in group.members:
            factors = seen.lora(member.tensor)
            if factors is not None:
                vectors.append(self._member(member, factors, seen, scratch))
        if not vectors:
            tensors = ", ".join(m.tensor for m in group.members[:4])
            raise CriterionError(
                f"criterion 'lora' needs an adapter on at least one tensor of group '{group.name}', "
                f"found none on {tensors}{', …' if len(group.members) > 4 else ''}. "
                "Adapt more modules (lora.target_modules), leave the group out, or choose another criterion."
            )
        return aggregate(group, vectors, "sum")

    def _member(self, member: Member, factors: LoraFactors, seen: Observation, scratch: _Scratch) -> torch.Tensor:
        low_rank = _LowRank(factors, scratch)

        def tile(start: int, stop: int) -> torch.Tensor:
            return low_rank.product(start, stop, seen.weight_rows(member.tensor, start, stop))

        power: Literal[1, 2] = 2 if self.options.variant == "paper" else 1
        units = member.gather(sum_tiles(member, low_rank.shape, low_rank.device, tile, power))
        if self.options.variant == "reference":
            norm = units.norm()
            return units / norm if norm > 0 else units
        return units


class _Scratch:
    """Memory for two tiles at a time, which the matrices of a group use one after the other.

    Allocating it anew for every tile costs as much as computing the tile.
    """

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def rows(self, rows: int, columns: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two matrices of undefined content, with the type and device of ``like``."""
        size = 2 * rows * columns
        if self._flat.numel() < size or (self._flat.dtype, self._flat.device) != (like.dtype, like.device):
            self._flat = like.new_empty(size)
        first, second = self._flat[:size].view(2, rows, columns)
        return first, second


class _LowRank:
    """Rows of the gradient surrogate of one adapted tensor times W + s·BA, in the tensor's stored layout.

    The tensor is seen as a matrix (E·n, m): E stacked matrices, E = 1 for a plain one. Rows are written to memory that
    the next call overwrites.
    """

    def __init__(self, factors: LoraFactors, scratch: _Scratch) -> None:
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
        self._weight_rows, self._surrogate_rows = scratch.rows(tile_rows(self.shape, self.device), self.shape[-1], a)

    def product(self, start: int, stop: int, weight: torch.Tensor) -> torch.Tensor:
        """Rows ``start:stop`` of (∂B·A + B·∂A − ∂B·∂A) · (W + s·BA), element by element, given those of W."""
        updated, surrogate = self._weight_rows[: stop - start], self._surrogate_rows[: stop - start]
        weight = weight.to(updated.dtype)
        (b, a), (left, right) = self._update, self._surrogate
        if a.ndim == 2:
            torch.addmm(weight, b[start:stop], a, out=updated)
            torch.mm(left[start:stop], right, out=surrogate)
            return surrogate.mul_(updated)
        for matrix, here, there in _pieces(start, stop, self.shape[-2]):
            torch.addmm(weight[here], b[matrix, there], a[matrix], out=updated[here])
            torch.mm(left[matrix, there], right[matrix], out=surrogate[here])
        return surrogate.mul_(updated)


def _pieces(start: int, stop: int, n: int) -> Iterator[tuple[int, slice, slice]]:
    """Rows ``start:stop`` of stacked matrices of n rows: in which matrix, where in the tile, where in the matrix."""
    for matrix in range(start // n, (stop - 1) // n + 1):
        first, last = max(start, matrix * n), min(stop, (matrix + 1) * n)
        yield matrix, slice(first - start, last - start), slice(first - matrix * n, last - matrix * n)


def _transposed(factors: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = factors
    return right.transpose(-1, -2), left.transpose(-1, -2)
