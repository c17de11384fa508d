"""A small question to a model, and its answer: to compare two models, or one before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from graphprune.placement import input_device
from graphprune.trace.inputs import default_call


def sample_inputs(model: nn.Module, length: int = 8) -> dict[str, Any]:
    """Keyword arguments for one forward pass, the same for every model of that kind.

    Token ids are of shape (1, ``length``) and differ; images and the like are random, by a seed of their own.

    Raises:
        TraceError: if the inputs of the model cannot be told.
    """
    generator = torch.Generator().manual_seed(0)
    device = input_device(model)
    given: dict[str, Any] = {}
    for name, value in default_call(model).kwargs.items():
        if not isinstance(value, torch.Tensor):
            given[name] = value
        elif name.endswith("input_ids"):
            given[name] = (torch.arange(1, length + 1) * 7 % vocabulary(model))[None].to(device)
        elif value.is_floating_point():
            given[name] = torch.randn(value.shape, generator=generator).to(device, value.dtype)
        else:
            given[name] = value.to(device)
    return given


def vocabulary(model: Any) -> int:
    """How many different tokens a model reads; the smallest number where it has several embeddings for them."""
    embeddings = model.get_input_embeddings()
    tables: list[Any] = list(embeddings) if isinstance(embeddings, nn.ModuleList) else [embeddings]
    return min(int(table.weight.shape[0]) for table in tables)


def output_of(outputs: Any) -> torch.Tensor:
    """What a forward pass is for: its logits, or the first tensor that it gives."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        outputs = [outputs["logits"]] if "logits" in outputs else list(outputs.values())
    return output_of(outputs[0])
