"""Differentiable gates where masks would stand: ones that nothing is changed by, but whose gradient is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graphprune import processes
from graphprune.errors import CriterionError
from graphprune.graph import Axis, Group, MaskSite
from graphprune.masking import PLACERS, Keep, MaskCall, skip_entry
from graphprune.names import resolve_module


class GateRecorder:
    """One gate of ones per group, at every place where the group's mask would be applied.

    ``input`` and ``weight`` sites are multiplied by the gate. A ``logits`` site, which a mask sets to -inf, gets the
    logarithm of the gate added: m = 1 changes nothing, m = 0 is the mask, and softmax weights are proportional to m in
    between. Where a softmax and the top-k choice behind it are masked, the softmax alone is gated; its output carries
    the gate on to the choice. A layer (``skip``) adds the gate times what it changes.

    Args:
        model: bare or wrapped.
        groups: whose gradient is wanted.

    Raises:
        CriterionError: for a group without a place for a mask.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group]) -> None:
        self._model = model
        self._groups = tuple(groups)
        self._gates: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for group in self._groups:
            if not group.sites:
                raise CriterionError(
                    f"group '{group.name}' has no place where its units can be masked, so there is no mask gradient. "
                    "Choose another criterion for it, such as taylor."
                )

    def open(self) -> None:
        """Puts the gates in."""
        wide = torch.promote_types(next(self._model.parameters()).dtype, torch.float32)
        for group in self._groups:
            gate = torch.ones(group.size, dtype=wide, requires_grad=True)
            self._gates[group.name] = gate
            for site in _gated(group.sites):
                self._handles.extend(_place(self._model, site, gate))

    def close(self) -> None:
        """Takes the gates out."""
        while self._handles:
            self._handles.pop().remove()
        self._gates.clear()

    def reset(self) -> None:
        """Forgets the gradients."""
        for gate in self._gates.values():
            gate.grad = None

    def share(self) -> None:
        """Makes the gradients those of the mean loss of all processes."""
        gradients = [
            torch.zeros_like(g, requires_grad=False) if g.grad is None else g.grad for g in self._gates.values()
        ]
        for gate, gradient in zip(self._gates.values(), processes.mean(gradients), strict=True):
            gate.grad = gradient

    def gradient(self, group: Group) -> Tensor:
        """The summed gradient of the group's gate, zero if no backward reached it.

        Raises:
            CriterionError: for a group that was not asked for, and for routed units whose scores only choose: then the
                loss does not depend on the gate to first order.
        """
        if group.name not in self._gates:
            raise CriterionError(f"the mask gradient of group '{group.name}' was not recorded")
        gate = self._gates[group.name]
        gradient = torch.zeros_like(gate, requires_grad=False) if gate.grad is None else gate.grad
        if any(site.kind == "logits" for site in group.sites) and not gradient.any():
            raise CriterionError(
                f"the mask gradient of group '{group.name}' is zero for every unit: its routing scores only choose "
                "units and do not weigh them. Choose another criterion for it, such as taylor."
            )
        return gradient

    def recorded(self) -> Iterator[tuple[str, Tensor]]:
        """The gradients that there are, by group name."""
        for name, gate in self._gates.items():
            if gate.grad is not None:
                yield name, gate.grad


class _Gate(Keep):
    """A gate spread over a dimension; takes the place of a mask in :mod:`graphprune.masking`."""

    def __init__(self, axis: Axis, gate: Tensor) -> None:
        self.length = axis.length
        self._gate = gate
        self._owner = axis.unit_of()

    def like(self, tensor: Tensor, dim: int) -> Tensor:
        owner = self._owner.to(tensor.device)
        spread = self._gate.to(tensor.device)[owner.clamp(min=0)]
        spread = torch.where(owner >= 0, spread, torch.ones_like(spread))
        shape = [1] * tensor.ndim
        shape[dim] = self.length
        # Spread before the cast, so that gradients of half precision are summed to units in float32.
        return spread.to(tensor.dtype).reshape(shape)


class _GateCall(MaskCall):
    """Adds the logarithm of the gate where a mask would put -inf."""

    def _fill(self, logits: Tensor) -> Tensor:
        return logits + self._mask.like(logits, self._site.dim).log()


def _gated(sites: tuple[MaskSite, ...]) -> list[MaskSite]:
    weighing = any(site.kind == "logits" and site.function == "softmax" for site in sites)
    return [site for site in sites if not (weighing and site.kind == "logits" and site.function == "topk")]


def _place(model: nn.Module, site: MaskSite, gate: Tensor) -> list[RemovableHandle]:
    spread = _Gate(site.axis, gate)
    if site.kind == "logits":
        return _on_logits(resolve_module(model, site.module), site, spread)
    if site.kind == "skip":
        return [handle for u in range(site.axis.size) for handle in skip_entry(model, site, u, gate[u])]
    return PLACERS[site.kind](model, site, spread)


def _on_logits(module: nn.Module, site: MaskSite, gate: _Gate) -> list[RemovableHandle]:
    running: list[_GateCall] = []

    def before(_module: nn.Module, _args: object) -> None:
        running.append(_GateCall(site, gate))
        running[-1].__enter__()

    def after(_module: nn.Module, _args: object, _output: object) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True, prepend=True),
    ]
