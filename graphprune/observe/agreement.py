"""Whether processes can meet inside a backward pass: only where each of them goes through the same layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from graphprune import processes
from graphprune.names import bare, resolve_module
from graphprune.observe.inputs import recomputing


class Agreement:
    """Compares, at the end of every forward pass, which layers have run in each process, and in which order.

    Gradients come in the reverse order of the forward pass. Where that is the same everywhere, all processes can
    exchange each gradient as it comes. An expert that has no tokens in one of them would leave the others waiting.

    Args:
        model: bare or wrapped.
        tensors: names in the graph of what is exchanged.

    Attributes:
        holds: whether all forward passes since the last :meth:`reset` were the same in all processes.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str]) -> None:
        self._model = model
        self._layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
        self._handles: list[RemovableHandle] = []
        self.reset()

    def open(self) -> None:
        """Begins to compare."""
        for number, path in enumerate(self._layers):
            note = resolve_module(self._model, path).register_forward_pre_hook(self._noter(number))
            self._handles.append(note)
        self._handles.append(bare(self._model).register_forward_hook(self._compare))

    def close(self) -> None:
        """Ends it."""
        while self._handles:
            self._handles.pop().remove()
        self.reset()

    def reset(self) -> None:
        """Forgets the forward passes."""
        self._ran: list[int] = []
        self._differed = False
        self.holds = False

    def _noter(self, number: int) -> Callable[[nn.Module, object], None]:
        def note(_module: nn.Module, _args: object) -> None:
            if torch.is_grad_enabled() and not recomputing():
                self._ran.append(number)

        return note

    def _compare(self, _module: nn.Module, _args: object, _output: object) -> None:
        if not torch.is_grad_enabled():
            return
        self._differed = self._differed or not processes.same(str(self._ran))
        self.holds = not self._differed
