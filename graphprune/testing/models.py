"""Tiny models with every parameter random, and inputs that their bare forward takes."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from graphprune.testing.configs import tiny_config
from graphprune.testing.zoo import find

LOOKUP = 1.0  # standard deviation of embeddings
TIED = 2.0  # the same where they are the output's weights too, in units of 1 / sqrt(width)
BRANCH = 0.5  # standard deviation of weights, in units of 1 / sqrt(inputs)
SPREAD = 0.1  # standard deviation of norms, decays and the like around what they were
OFFSET = 0.03  # standard deviation of biases: little enough for no expert to be left out for them


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
    config, entry = tiny_config(case, **changes), find(case).entry
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + entry.seed)
        auto: Any = AutoModelForCausalLM
        build: Any = getattr(transformers, entry.model_class) if entry.model_class else auto.from_config
        model: PreTrainedModel = build(config).float().eval()
        _randomize(model, OFFSET if entry.offset is None else entry.offset)
        for name, buffer in model.named_buffers():
            field = next((field for end, field in entry.tables.items() if name.endswith(end)), None)
            if field is not None:
                _draw_table(buffer, getattr(config, field))
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
def _randomize(model: PreTrainedModel, offset: float) -> None:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            _randomize_parameter(module, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            saved = name not in module._non_persistent_buffers_set and buffer.is_floating_point()
            if saved and (buffer.ndim == 1 or not buffer.any()):  # no masks, whose zeros mean something
                buffer.add_(torch.randn_like(buffer) * (buffer == 0) * offset)  # the balance of a router
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    table = getattr(model.get_input_embeddings(), "weight", None)
    for weight in () if head is None else (p for p in head.parameters() if p.ndim == 2):
        weight.normal_(std=(TIED if weight is table else 1) * weight.shape[-1] ** -0.5)


def _randomize_parameter(module: nn.Module, parameter: Tensor) -> None:
    """Random, and so that rounding does not grow: each branch adds less to the residual stream than is there.

    Branches of full size turn an error of 1e-7 into one of 1e-4 where norms, gates and recurrences follow each other,
    and then no test can tell a wrong cut from rounding. For the same reason tokens stay different from each other, and
    every expert is chosen by some.
    """
    parameter.nan_to_num_(0.0, 0.0, 0.0)
    rows = len(parameter) if parameter.ndim >= 2 else 1
    centred = parameter.mean().abs() <= 0.5 * parameter.std(correction=0)
    if isinstance(module, nn.Embedding):
        parameter.normal_(std=LOOKUP)
    elif rows > 1 and bool(centred):  # a weight, or zeros where weights will be
        convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        fan_in = parameter[0].numel() if convolution else parameter.shape[-1]
        parameter.normal_(std=(1 if convolution else BRANCH) * fan_in**-0.5)  # convolutions do not end a branch
    elif parameter.any():  # a norm, a decay: random around what it was
        parameter.add_(torch.randn_like(parameter) * SPREAD)
    else:  # a bias
        parameter.normal_(std=OFFSET)


@torch.no_grad()
def _draw_table(table: Tensor, below: int) -> None:
    """Fills an integer table (rows, k) with k different numbers less than ``below`` in every row."""
    table.copy_(torch.rand(len(table), below).argsort(dim=1)[:, : table.shape[1]])
