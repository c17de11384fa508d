"""Tensors of which every process of a training holds a part: those of FSDP2, and of DeepSpeed's stage 3."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def is_divided(tensor: Tensor) -> bool:
    """Whether this process holds a part of ``tensor`` alone."""
    return isinstance(tensor, DTensor) or _of_deepspeed(tensor)


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of the whole tensor; DeepSpeed's parts themselves are empty."""
    return torch.Size(cast(Any, tensor).ds_shape) if _of_deepspeed(tensor) else tensor.shape


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without a gradient; every process has to call this for one that is divided.

    Any other tensor is given back as it is, or detached.
    """
    if isinstance(tensor, DTensor):
        return cast(Tensor, cast(Any, tensor.detach()).full_tensor())
    # While its layer runs, forward or backward, DeepSpeed has the whole there, and must not be made to let go of it.
    if not _of_deepspeed(tensor) or cast(Any, tensor).ds_status.name == "AVAILABLE":
        return tensor.detach() if tensor.requires_grad else tensor
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def zeros(like: Tensor) -> Tensor:
    """A whole tensor of zeros in the place of ``like``."""
    return torch.zeros(shape_of(like), dtype=like.dtype, device=like.device)


def _of_deepspeed(tensor: Any) -> bool:
    return hasattr(tensor, "ds_id")
