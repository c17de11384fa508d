"""Sizes that modules store beside their tensors, and that must follow a cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graphprune.packed import packed_in


def follow_sizes(module: nn.Module, leaf: str, old: tuple[int, ...], dims: dict[int, torch.Tensor]) -> None:
    """Sets the stored sizes of a standard layer after its tensor ``leaf`` of shape ``old`` was cut along
    ``dims``.

    Sizes that only one architecture's modules store are rules of the graph instead
    (:class:`graphprune.graph.SizeRule`): an equal number alone does not say that it is the same size.
    """
    if leaf != "weight":
        return
    codes = packed_in(module)
    new = tuple(module._parameters[leaf].shape) if codes is None else codes.stored_shape  # type: ignore[union-attr]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = new
    elif isinstance(module, Conv1D):
        module.nx, module.nf = new
    elif isinstance(module, nn.Embedding):
        _embedding(module, new, dims)
    elif isinstance(module, nn.Conv1d):
        _convolution(module, old, new)
    else:
        _norm(module, old, new)


def _embedding(module: nn.Embedding, new: tuple[int, ...], dims: dict[int, torch.Tensor]) -> None:
    module.num_embeddings, module.embedding_dim = new
    if module.padding_idx is not None and 0 in dims:
        position = (dims[0] == module.padding_idx).nonzero().flatten().tolist()
        module.padding_idx = position[0] if position else None


def _convolution(module: nn.Conv1d, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    if module.groups == old[0]:  # depth-wise: one group per channel
        module.groups = new[0]
    module.out_channels, module.in_channels = new[0], new[1] * module.groups


def _norm(module: Any, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """Norms of all makes: a single vector, whose length some of them store."""
    if len(new) != 1 or any(p.ndim != 1 for p in module._parameters.values() if p is not None):
        return
    stored = getattr(module, "normalized_shape", None)
    if stored is not None and stored in (old, list(old), old[0]):
        module.normalized_shape = new[0] if isinstance(stored, int) else new
    for name in ("hidden_size", "num_channels", "num_features"):
        if getattr(module, name, None) == old[0]:
            setattr(module, name, new[0])
