"""Reentrant activation checkpointing, which gives out weight gradients in parts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from graphprune.errors import CriterionError
from graphprune.observe.checkpointing import refuse_reentrant


@pytest.fixture
def llama():
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def switch_on(model, **options):
    """transformers 5 renames the method on its way."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)(options or None)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.DataParallel(m)])
def test_reentrant_checkpointing_is_refused(llama, wrap):
    switch_on(llama, use_reentrant=True)
    with pytest.raises(CriterionError, match=r"'model'.*use_reentrant=True.*use_reentrant=False"):
        refuse_reentrant(wrap(llama))


def test_other_models_pass(llama):
    refuse_reentrant(llama)
    switch_on(llama, use_reentrant=False)
    refuse_reentrant(llama)
    odd = nn.Linear(2, 2)
    odd.gradient_checkpointing, odd._gradient_checkpointing_func = True, SimpleNamespace()
    refuse_reentrant(odd)


def test_why():
    """A weight that two reentrant segments use gives out its gradient twice, in parts."""
    weight, parts = nn.Parameter(torch.ones(2)), []
    weight.register_post_accumulate_grad_hook(lambda p: parts.append(p.grad.clone()))
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        x = torch.utils.checkpoint.checkpoint(lambda value: (value * weight).sin(), x, use_reentrant=True)
    x.sum().backward()
    assert len(parts) == 2
