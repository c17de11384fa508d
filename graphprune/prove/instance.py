"""A model to prove things on, where there is none with weights: random, in every parameter."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from graphprune.checkpoint.config import auto_for
from graphprune.errors import GraphPruneError
from graphprune.reshape.config import quiet

#: Weights, the largest gradients, and the tensors of a cut copy.
_COPIES = 3


def check_memory(model: nn.Module, name: str, available: int | None = None) -> None:
    """Refuses a proof that the machine has no memory for.

    Args:
        model: with or without weights (on the meta device); they are counted as float32.
        name: of the model, for the message.
        available: bytes of memory that are free; asked from the system by default.

    Raises:
        GraphPruneError: with what is needed and what there is.
    """
    needed = _COPIES * 4 * sum(p.numel() for p in model.parameters())
    free = psutil.virtual_memory().available if available is None else available
    if needed > free:
        raise GraphPruneError(
            f"a proof on '{name}' needs about {needed / 1e9:.1f} GB (its weights in float32, their gradients, a cut "
            f"copy); {free / 1e9:.1f} GB are free. What is proved depends on the architecture, not on its size: copy "
            "its config.json, make it smaller (fewer layers, narrower), and prove that folder instead."
        )


@torch.no_grad()
def random_instance(
    config: Any, seed: int = 0, *, task: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of the config in float32 and evaluation mode, every parameter random.

    A bias of zeros or a norm of ones would hide a slice that was missed.
    """
    auto = auto_for(type(config).__name__, config, task, trust_remote_code=trust_remote_code)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model: Any = auto.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0, 0.0, 0.0).add_(torch.randn_like(parameter), alpha=0.05)
    instance: PreTrainedModel = model.eval()
    return instance
