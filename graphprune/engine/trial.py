"""How an optimizer takes a cut, found out by a trial: two copies of it step on a small tensor and on a part of that.

Names say little: optimizers are subclassed, wrapped and renamed. What counts is whether the steps of what is left are
those that would have been taken beside silent slices.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graphprune.engine.moments import cut_state, mixed, strange
from graphprune.reshape.cut import cut_tensor

#: Of the largest step, by how much steps of the same elements may differ in rounding.
_ROUNDING = 1e-3
#: Even, and large enough for optimizers that keep small tensors in another way.
_SHAPES = {1: (8192,), 2: (64, 128), 3: (4, 32, 64)}
_BEFORE, _AFTER = 3, 3


@dataclass(frozen=True)
class Trial:
    """What came out.

    Attributes:
        obstacle: why the optimizer's tensors must keep their shapes; None if they can be cut.
        difference: what differs from a training under masks, where something does.
    """

    obstacle: str | None = None
    difference: str | None = None


def tried(optimizer: torch.optim.Optimizer | None) -> Trial:
    """Tries out every parameter group with tensors of every number of dimensions that is in it.

    The optimizer itself, its state and the random number generators stay as they are.
    """
    if optimizer is None:
        return Trial()
    name = type(optimizer).__name__
    if getattr(optimizer, "is_paged", False) and any(p.is_cuda for g in optimizer.param_groups for p in g["params"]):
        return Trial(f"the optimizer {name} keeps its state in pages, which cannot be cut")  # that of large tensors
    alone = shared = True
    for group in (g for g in optimizer.param_groups if g["params"]):
        shared = False
        for ndim in sorted({2, *(p.ndim for p in group["params"] if p.ndim in _SHAPES)}):
            try:
                whole, part, kept = _stepped(optimizer, group, _SHAPES[ndim])
            except _StrangeError as error:
                return Trial(f"the optimizer {name} keeps '{error}', and how that is cut is not known")
            except Exception as error:  # noqa: BLE001 - other people's optimizers fail in any way they like
                return Trial(f"the optimizer {name} cannot be tried on a small tensor ({_first_line(error)})")
            step = (whole.now - whole.before).abs().max()
            apart = (cut_tensor(whole.now, kept) - part.now).abs().max()
            alone = alone and bool(apart <= _ROUNDING * step) and whole.settings == part.settings
            shared = shared or whole.mixed
        if not alone and not shared:
            return Trial(f"the optimizer {name} does not treat every element of a parameter by itself")
    if alone:
        return Trial()
    return Trial(difference=f"{name} judges elements by others: after each cut by those that are left")


class _StrangeError(Exception):
    """A state of unknown form, by its name."""


@dataclass(frozen=True, eq=False)
class _End:
    """A tensor before and after the steps that followed the cut, and what else is known then."""

    before: torch.Tensor
    now: torch.Tensor
    mixed: bool
    settings: dict[str, Any]


def _stepped(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[_End, _End, dict[int, torch.Tensor]]:
    """The whole tensor with silent slices, and what is left of it without them; and which indices are left."""
    like = group["params"][0]
    kept = {dim: torch.arange(0, size, 2) for dim, size in enumerate(shape)}
    with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
        draw = torch.Generator().manual_seed(0)
        gradients = [torch.randn(shape, generator=draw) for _ in range(_BEFORE + _AFTER)]
        whole = nn.Parameter(torch.randn(shape, generator=draw).to(like))
        first = _twin(optimizer, group, whole)
        for gradient in gradients[:_BEFORE]:
            _step(first, whole, gradient)
        odd = strange(first.state[whole], shape)
        if odd is not None:
            raise _StrangeError(odd)
        part = nn.Parameter(cut_tensor(whole.detach(), kept))
        second = _twin(optimizer, first.param_groups[-1], part)
        second.state[part] = copy.deepcopy(cut_state(first.state[whole], shape, kept))  # counters count in place
        before = whole.detach().clone(), part.detach().clone()
        silent = torch.zeros(shape)
        silent[torch.meshgrid(*kept.values(), indexing="ij")] = 1.0
        for gradient in gradients[_BEFORE:]:
            _step(first, whole, gradient * silent)
            _step(second, part, cut_tensor(gradient, kept))
    ends = [
        _End(old.float(), p.detach().float(), mixed(o.state[p], tuple(p.shape)), _settings(o.param_groups[-1]))
        for old, p, o in zip(before, (whole, part), (first, second), strict=True)
    ]
    return ends[0], ends[1], kept


def _twin(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], tensor: nn.Parameter) -> torch.optim.Optimizer:
    """A copy of the optimizer for one tensor, with no state, no hooks, and a learning rate that moves something."""
    twin: torch.optim.Optimizer = object.__new__(type(optimizer))
    hooks: dict[str, Any] = {name: OrderedDict() for name in vars(optimizer) if name.startswith("_optimizer_")}
    own = {name: value for name, value in vars(optimizer).items() if name != "step"}  # schedulers wrap the step
    vars(twin).update({**own, **hooks, "state": defaultdict(dict)})
    # Behind groups that are empty, as bitsandbytes has settings by place.
    twin.param_groups = [{**group, "params": []} for _ in optimizer.param_groups]
    twin.param_groups.append({**group, "params": [tensor]})
    rate = group.get("lr")
    if rate is not None:
        twin.param_groups[-1]["lr"] = torch.full_like(rate, 1e-2) if isinstance(rate, torch.Tensor) else 1e-2
    return twin


def _step(optimizer: torch.optim.Optimizer, tensor: nn.Parameter, gradient: torch.Tensor) -> None:
    tensor.grad = gradient.to(tensor)
    type(optimizer).step(optimizer)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if isinstance(value, (bool, int, float, str, tuple))}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
