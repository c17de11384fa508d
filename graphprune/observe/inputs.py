"""Norms of the inputs of linear layers, over all tokens that pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graphprune import processes
from graphprune.divided import shape_of
from graphprune.names import bare, plain, resolve_module


class InputRecorder:
    """Sums of squares of every input feature of the linear layers that hold the given tensors, in float32.

    Tokens that the model's ``attention_mask`` excludes do not count where a layer sees the batch as a whole,
    ``(batch, length, features)`` or flattened; a layer that is given some of the tokens (an expert) counts
    all of them.

    Args:
        model: bare or wrapped.
        tensors: names in the graph; those that are no matrix of a linear layer are left aside.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str]) -> None:
        self._model = model
        self._layers: dict[str, nn.Module] = {}
        for name in tensors:
            path, _, leaf = name.rpartition(".")
            layer = resolve_module(model, path)
            if leaf == "weight" and isinstance(plain(layer), (nn.Linear, Conv1D)):
                self._layers[name] = layer
        self._sums: dict[nn.Module, Tensor] = {}
        self._tokens: Tensor | None = None
        self._with_gradients = True
        self._undo: list[Callable[[], None]] = []

    def open(self) -> None:
        """Starts recording forward passes with, or without, gradients: as is the case where it is called."""
        self._with_gradients = torch.is_grad_enabled()
        root = bare(self._model).register_forward_pre_hook(self._note_mask, with_kwargs=True, prepend=True)
        self._undo.append(root.remove)
        for layer in dict.fromkeys(self._layers.values()):
            handle = layer.register_forward_pre_hook(self._listen, with_kwargs=True)
            self._undo.append(handle.remove)

    def close(self) -> None:
        """Stops recording."""
        while self._undo:
            self._undo.pop()()
        self.reset()

    def reset(self) -> None:
        """Forgets what was recorded."""
        self._sums.clear()

    def share(self) -> None:
        """Makes the sums those over the tokens of all processes."""
        layers = list(dict.fromkeys(self._layers.values()))
        for layer, squares in zip(layers, processes.total([self._squares(layer) for layer in layers]), strict=True):
            self._sums[layer] = squares

    def norm(self, tensor: str) -> Tensor | None:
        """L2 norm of each input feature: (inputs,), zero where no token passed; None if it is no linear layer."""
        layer = self._layers.get(tensor)
        return None if layer is None else self._squares(layer).sqrt()

    def _squares(self, layer: nn.Module) -> Tensor:
        if layer in self._sums:
            return self._sums[layer]
        base = plain(layer)
        weight = base.get_parameter("weight")
        shape = shape_of(weight)
        size = shape[0] if isinstance(base, Conv1D) else int(getattr(base, "in_features", shape[-1]))
        return torch.zeros(size, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)

    def _note_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        plain_mask = isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.bool().all())
        self._tokens = mask.reshape(-1).bool() if plain_mask and isinstance(mask, Tensor) else None

    def _listen(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() != self._with_gradients or recomputing():
            return
        value = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
        flat = value.detach().reshape(-1, value.shape[-1])
        if self._tokens is not None and len(flat) == len(self._tokens):
            flat = flat[self._tokens.to(flat.device)]
        dtype = torch.promote_types(flat.dtype, torch.float32)
        squares = torch.linalg.vector_norm(flat, dim=0, dtype=dtype).square()
        known = self._sums.get(layer)
        self._sums[layer] = squares if known is None else known.add_(squares)


def recomputing() -> bool:
    """Whether this is activation checkpointing, in a backward pass: these tokens have passed before."""
    # Compiled code recomputes without running hooks, and a compiler cannot look at the backward pass.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
