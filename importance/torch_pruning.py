"""Importance objects of the library torch-pruning as criteria."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from graphprune.errors import CriterionError
from graphprune.graph import Group, Member
from graphprune.importance._tiles import exact
from graphprune.importance.base import Criterion, Observation, Options, Signal

#: Importance classes that hook into the model by themselves instead of looking at weights and gradients.
_NOT_ADAPTED = ("Importance", "OBDCImportance", "ActivationImportance")


class TorchPruningOptions(Options):
    """Options of :class:`TorchPruning`."""

    importance: str = Field(
        "GroupMagnitudeImportance",
        description="Name of a class in torch_pruning.importance.",
        pattern=r"^\w+$",
    )
    arguments: dict[str, Any] = Field({}, description="Arguments of that class, such as {p: 2}.")
    fold: Literal["mean", "sum"] = Field(
        "mean", description="How channel scores become the score of a unit of several channels."
    )

    @model_validator(mode="after")
    def _can_be_built(self) -> TorchPruningOptions:
        make_importance(self.importance, self.arguments)
        return self


class TorchPruning(Criterion):
    """DepGraph: Towards Any Structural Pruning, Fang et al. 2023, as implemented in torch-pruning.

    Builds, for a group, the list of layers and indices that torch-pruning's own dependency graph would give,
    and lets the original importance object compute on it; ``fold`` turns channels into units, by the mean as
    torch-pruning does for attention heads. GroupMagnitudeImportance, LAMPImportance, FPGMImportance and
    RandomImportance look at weights alone, GroupTaylorImportance at gradients, GroupHessianImportance at mean
    squared gradients of samples.

    Where a unit owns more channels of one tensor than of another (query heads of a key/value head), the
    tensor enters as several layers of the smaller number, so that every reduction of torch-pruning is
    defined. Matrices and stacks of matrices enter as linear layers with their bias; layer norms as layer
    norms; other vectors and lookup tables do not enter, because torch-pruning scores no such layers.

    https://arxiv.org/abs/2301.12900
    """

    name: ClassVar[str] = "torch_pruning"
    options_model: ClassVar[type[Options]] = TorchPruningOptions
    reference_url: ClassVar[str] = "https://arxiv.org/abs/2301.12900"
    options: TorchPruningOptions

    def __init__(self, options: TorchPruningOptions, importance: Any = None) -> None:
        """Takes, instead of a class name in the options, also any object of torch-pruning's interface."""
        super().__init__(options)
        self._importance = importance or make_importance(options.importance, options.arguments)

    @property
    def signals(self) -> frozenset[Signal]:
        from torch_pruning.pruner import importance

        if isinstance(self._importance, importance.GroupHessianImportance):
            return frozenset({Signal.WEIGHT, Signal.SQUARED_GRADIENT})
        if isinstance(self._importance, importance.GroupTaylorImportance):
            return frozenset({Signal.WEIGHT, Signal.WEIGHT_GRADIENT})
        return frozenset({Signal.WEIGHT})

    def score(self, group: Group, seen: Observation) -> torch.Tensor:
        owned = {m: int((m.unit_of() >= 0).sum()) // m.size for m in group.members}
        slots = math.gcd(*owned.values())
        items = _Items()
        for member in group.members:
            layer = self._layer(member, group, seen)
            if layer is not None:
                for part in range(owned[member] // slots):
                    items.add(layer, member, slots, part)
        result = self._importance(items) if items else None
        expected = (group.size * slots,)
        if not isinstance(result, torch.Tensor) or tuple(result.shape) != expected:
            raise CriterionError(
                f"torch-pruning's {type(self._importance).__name__} was expected to give scores of shape "
                f"{expected} for group '{group.name}', got {getattr(result, 'shape', result)}. "
                "Choose another criterion for this group, or other arguments."
            )
        by_unit = result.detach().float().reshape(group.size, slots)
        return by_unit.mean(dim=1) if self.options.fold == "mean" else by_unit.sum(dim=1)

    def _layer(self, member: Member, group: Group, seen: Observation) -> nn.Module | None:
        """A stand-in of the layer's type whose output, or input, dimension is the member's."""
        path, _, leaf = member.tensor.rpartition(".")
        holder = seen.holder(member.tensor)
        weight = self._parameter(member.tensor, seen)
        bias_name = f"{path}.bias"
        has_bias = leaf == "weight" and not member.consumes and any(m.tensor == bias_name for m in group.members)
        bias = self._parameter(bias_name, seen) if has_bias else None
        if weight.ndim == 1:
            return _norm(weight, bias) if isinstance(holder, nn.LayerNorm) and leaf == "weight" else None
        if isinstance(holder, nn.Embedding):
            return None
        return _linear(weight, bias, member)

    def _parameter(self, tensor: str, seen: Observation) -> nn.Parameter:
        parameter = nn.Parameter(exact(seen.weight(tensor).detach()), requires_grad=False)
        if Signal.WEIGHT_GRADIENT in self.signals:
            parameter.grad = exact(seen.gradient(tensor))
        if Signal.SQUARED_GRADIENT in self.signals:
            parameter.grad = exact(seen.squared_gradient(tensor))
        return parameter


def make_importance(name: str, arguments: dict[str, Any]) -> Any:
    """An importance object of torch-pruning by class name.

    Raises:
        ValueError: for a class that does not exist or cannot be used here, and for arguments that it does not
        take.
    """
    from torch_pruning.pruner import importance

    known = {
        key: value
        for key, value in vars(importance).items()
        if isinstance(value, type) and issubclass(value, importance.Importance) and key not in _NOT_ADAPTED
    }
    if name not in known:
        why = "needs hooks of its own in the model" if name in _NOT_ADAPTED else "does not exist"
        raise ValueError(f"torch-pruning's importance '{name}' {why}; known: {', '.join(sorted(known))}")
    try:
        return known[name](**arguments)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"torch-pruning's {name} refuses {arguments}: {error}") from None


class _Items(list[Any]):
    """What torch-pruning asks of a group: pairs (dependency, indices) with root indices."""

    def add(self, layer: nn.Module, member: Member, slots: int, part: int) -> None:
        """Adds the ``part``-th lot of ``slots`` indices per unit of a member."""
        from torch_pruning import _helpers
        from torch_pruning.dependency import Dependency
        from torch_pruning.dependency.node import Node
        from torch_pruning.pruner import function

        if isinstance(layer, nn.LayerNorm):
            prune = function.prune_layernorm_out_channels
        elif member.consumes:
            prune = function.prune_linear_in_channels
        else:
            prune = function.prune_linear_out_channels
        node = Node(layer, None, member.tensor)
        owner = member.unit_of()
        by_unit = owner.argsort(stable=True)[(owner < 0).sum() :].reshape(member.size, -1)
        # Ascending, because some importance classes sort the indices in place and not the roots with them.
        indices, roots = by_unit[:, part * slots : (part + 1) * slots].reshape(-1).sort()
        item = _helpers.GroupItem(dep=Dependency(prune, prune, node, node), idxs=indices.tolist())
        item.root_idxs = roots.tolist()
        self.append(item)


def _norm(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.LayerNorm:
    layer = nn.LayerNorm(weight.numel(), bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _linear(weight: nn.Parameter, bias: nn.Parameter | None, member: Member) -> nn.Linear:
    # Whatever the tensor's layout: (length, everything else) on the output side, its transpose on the input
    # side.
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(_as_matrix(weight.data, member), requires_grad=False)
    if weight.grad is not None:
        layer.weight.grad = _as_matrix(weight.grad, member)
    layer.out_features, layer.in_features = layer.weight.shape
    if bias is not None:
        layer.bias = bias
    return layer


def _as_matrix(tensor: torch.Tensor, member: Member) -> torch.Tensor:
    rows = tensor.movedim(member.dim, 0).flatten(1)
    return rows.T if member.consumes else rows
