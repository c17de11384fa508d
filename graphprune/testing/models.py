"""Tiny models with every parameter random, and inputs that their bare forward takes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from graphprune.testing.configs import tiny_config
from graphprune.testing.zoo import find

LOOKUP = 0.4  # standard deviation of embeddings
BRANCH = 0.5  # standard deviation of weights, in units of 1 / sqrt(inputs)


def tiny_model(case: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny model in float32 and evaluation mode, the same for the same seed.

    No parameter is left at a constant (a bias of zeros, a norm of ones): a slice of it that was missed would go
    unnoticed.

    Args:
        case: a name that :func:`graphprune.testing.cases` lists.
        seed: of the parameters.
        changes: config fields, see :func:`graphprune.testing.tiny_config`.

    Raises:
        ZooError: for an unknown case, or a field that the config does not have.
    """
    config = tiny_config(case, **changes)
    name = find(case).entry.model_class
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModelForCausalLM
        build: Any = getattr(transformers, name) if name else auto.from_config
        model: PreTrainedModel = build(config).float().eval()
        _randomize(model)
    return model


def example_inputs(model: PreTrainedModel, batch: int = 2, length: int = 13, seed: int = 7) -> dict[str, Tensor]:
    """Random inputs for a bare forward of ``model``: ``input_ids`` of shape (batch, length), and what else it needs.

    Models over several codebooks read ``input_ids`` of shape (batch * codebooks, length).
    """
    config = model.config.get_text_config(decoder=True)
    rows = batch * getattr(config, "num_codebooks", 1) if _reads_codebooks(model) else batch
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, config.vocab_size, (rows, length), generator=generator)}


def _reads_codebooks(model: PreTrainedModel) -> bool:
    return any(len(heads) > 1 for heads in model.children() if isinstance(heads, nn.ModuleList))


@torch.no_grad()
def _randomize(model: PreTrainedModel) -> None:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            _randomize_parameter(module, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point() and not buffer.any():
                buffer.normal_(std=0.1)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for weight in () if head is None else (p for p in head.parameters() if p.ndim == 2):
        weight.normal_(std=weight.shape[-1] ** -0.5)  # logits of order one; a tied embedding follows


def _randomize_parameter(module: nn.Module, parameter: Tensor) -> None:
    """Random, and so that rounding does not grow: each branch adds less to the residual stream than is there.

    Branches of full size turn an error of 1e-7 into one of 1e-4 where norms, gates and recurrences follow each other,
    and then no test can tell a wrong cut from rounding.
    """
    parameter.nan_to_num_(0.0, 0.0, 0.0)
    centred = parameter.mean().abs() <= 0.5 * parameter.std(correction=0)
    if isinstance(module, nn.Embedding):
        parameter.normal_(std=LOOKUP)
    elif parameter.ndim >= 2 and bool(centred):  # a weight, or zeros where weights will be
        convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        fan_in = parameter[0].numel() if convolution else parameter.shape[-1]
        parameter.normal_(std=(1 if convolution else BRANCH) * fan_in**-0.5)  # convolutions do not end a branch
    else:  # a norm, a bias, a decay: random around what it was
        parameter.add_(torch.randn_like(parameter) * 0.1)
