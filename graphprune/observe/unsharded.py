"""FSDP2: the whole parameters that it puts in place of its parts while layers run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle


class WholeParameters:
    """Tells once of every whole parameter, before the first forward pass in which it stands in.

    FSDP2 makes one for each of its parts, and uses it ever after; gradients come to it, before they are divided.

    Args:
        model: with FSDP2's outermost layer.
        parts: the parameters in question, as they are between forward passes.
        found: is given the part and the whole that stands for it.
    """

    def __init__(
        self, model: nn.Module, parts: Iterable[Tensor], found: Callable[[nn.Parameter, nn.Parameter], None]
    ) -> None:
        self._model, self._found = model, found
        self._wanted = {id(part) for part in parts}
        self._known: dict[int, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Begins to look."""
        places: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]] = {}
        self._collect(self._model, None, places)
        for unit, held in places.items():
            # Called after FSDP2's own hook, which is the first.
            self._handles.append(unit.register_forward_pre_hook(self._looker(held)))

    def close(self) -> None:
        """Looks no more."""
        while self._handles:
            self._handles.pop().remove()
        self._known.clear()

    def _collect(self, module: nn.Module, unit: nn.Module | None, places: dict[Any, list[Any]]) -> None:
        unit = module if isinstance(module, FSDPModule) else unit
        for leaf, part in module._parameters.items():
            if unit is not None and id(part) in self._wanted:
                places.setdefault(unit, []).append((module, leaf, part))
        for child in module.children():
            self._collect(child, unit, places)

    def _looker(self, held: list[tuple[nn.Module, str, nn.Parameter]]) -> Callable[..., None]:
        def look(_unit: nn.Module, _args: object) -> None:
            for owner, leaf, part in held:
                stands = owner._parameters[leaf]
                if stands is not None and not isinstance(stands, DTensor) and id(stands) not in self._known:
                    self._known[id(stands)] = stands
                    self._found(part, stands)

        return look


def settle(model: nn.Module) -> None:
    """Lets FSDP2 put its parts back wherever a whole parameter still stands: parts are what names are looked up for."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
