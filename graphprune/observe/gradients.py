"""Gradients of base weights, taken as they come, without leaving anything on the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from graphprune import processes
from graphprune.divided import zeros
from graphprune.names import resolve_tensor
from graphprune.observe.checkpointing import refuse_reentrant
from graphprune.observe.unsharded import WholeParameters


class Take(Protocol):
    """Is given the gradient of ``parameter`` for one backward call; the memory is the taker's."""

    def __call__(self, parameter: Tensor, gradient: Tensor) -> None: ...


class GradientTap:
    """Hands the gradients of some tensors to ``take``, inside the backward pass.

    A parameter that did not require a gradient does so while the tap is open, and its ``grad`` is taken away as soon
    as it is there, so that gradient clipping and optimizers never meet it. A parameter that did require one keeps it.
    A parameter that is used several times is handed over once, with the gradient of all uses. Where FSDP2 has divided
    parameters, ``take`` is given the part and the whole gradient of this process.

    Args:
        model: bare or wrapped.
        tensors: names in the graph; buffers are left aside.
        take: called once per backward call for every parameter that it reaches.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str], take: Take) -> None:
        self._model = model
        self._tensors = {id(t): t for t in (resolve_tensor(model, name) for name in tensors)}
        self._take = take
        self._undo: list[Callable[[], None]] = []

    def open(self) -> None:
        """Begins to listen.

        Raises:
            CriterionError: if the model recomputes activations in a way that gives out gradients in parts.
        """
        refuse_reentrant(self._model)
        taken = [t for t in self._tensors.values() if isinstance(t, nn.Parameter) and t.is_floating_point()]
        trained = {id(parameter) for parameter in taken if parameter.requires_grad}

        def listen(part: nn.Parameter, whole: nn.Parameter) -> None:
            handle: RemovableHandle
            if id(part) in trained:
                handle = whole.register_hook(self._listener(part))  # type: ignore[no-untyped-call]
            else:
                handle = whole.register_post_accumulate_grad_hook(self._remover(part))  # type: ignore[no-untyped-call]
            self._undo.append(handle.remove)

        for parameter in taken:
            if id(parameter) not in trained:
                self._undo.append(_restorer(parameter))
                parameter.requires_grad_(True)
                parameter.grad = None
            if not isinstance(parameter, DTensor):
                listen(parameter, parameter)
        divided = [parameter for parameter in taken if isinstance(parameter, DTensor)]
        if divided:
            wholes = WholeParameters(self._model, divided, listen)
            wholes.open()
            self._undo.append(wholes.close)

    def close(self) -> None:
        """Stops listening and leaves the parameters as they were."""
        while self._undo:
            self._undo.pop()()

    def _remover(self, part: nn.Parameter) -> Callable[[Tensor], None]:
        def take_away(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            self._take(part, gradient)

        return take_away

    def _listener(self, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        # Copied, because autograd may hand the same memory to the parameter and change it there.
        return lambda gradient: self._take(parameter, gradient.detach().clone())


class GradientRecorder:
    """Sums, and sums of squares, of the gradients of some tensors over backward calls.

    Buffers, and parameters that a backward does not reach, have zero gradient.

    Args:
        model: bare or wrapped.
        tensors: names in the graph.
        sums: whether to record the gradient.
        squares: whether to record its square, backward by backward.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str], *, sums: bool, squares: bool) -> None:
        self._tensors = {name: resolve_tensor(model, name) for name in tensors}
        self._tap = GradientTap(model, self._tensors, self._add)
        self._record_sums, self._record_squares = sums, squares
        self._sums: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}

    def open(self) -> None:
        """Starts recording."""
        self._tap.open()

    def close(self) -> None:
        """Stops recording and leaves the parameters as they were."""
        self._tap.close()
        self.reset()

    def reset(self) -> None:
        """Forgets what was recorded."""
        self._sums.clear()
        self._squares.clear()

    def share(self) -> None:
        """Makes gradients and squares the means over all processes, one tensor at a time.

        A tensor that some processes have not reached (an expert without tokens) counts as zero there.
        """
        tensors = {id(t): t for t in self._tensors.values()}
        for store in (self._sums, self._squares):
            reached = processes.total([torch.tensor([float(key in store) for key in tensors])])[0] > 0
            for (key, tensor), anywhere in zip(tensors.items(), reached.tolist(), strict=True):
                if anywhere:
                    own = store[key] if key in store else zeros(tensor)
                    store[key] = processes.mean([own])[0]

    def sum(self, tensor: str) -> Tensor:
        """The summed gradient of ``tensor``."""
        return self._read(self._sums, tensor)

    def sum_of_squares(self, tensor: str) -> Tensor:
        """The sum over backward calls of the squared gradient of ``tensor``."""
        return self._read(self._squares, tensor)

    def recorded(self) -> Iterator[tuple[str, Tensor]]:
        """What was recorded, by tensor name."""
        for name, tensor in self._tensors.items():
            for store in (self._sums, self._squares):
                if id(tensor) in store:
                    yield name, store[id(tensor)]

    def _read(self, store: dict[int, Tensor], name: str) -> Tensor:
        tensor = self._tensors[name]
        recorded = store.get(id(tensor))
        return zeros(tensor) if recorded is None else recorded

    def _add(self, parameter: Tensor, gradient: Tensor) -> None:
        key = id(parameter)
        if self._record_squares:
            square = wide(gradient).square()
            self._squares[key] = self._squares[key].add_(square) if key in self._squares else square
        if self._record_sums:
            # One backward keeps the gradient's own precision and memory; sums of several need more.
            known = self._sums.get(key)
            self._sums[key] = gradient if known is None else wide(known).add_(gradient)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already: half precision overflows when squared or summed."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _restorer(parameter: nn.Parameter) -> Callable[[], None]:
    gradient = parameter.grad

    def restore() -> None:
        parameter.requires_grad_(False)
        parameter.grad = gradient

    return restore
