"""Tiny models of every architecture: they build, they run, nothing in them is constant, sizes cannot be confused."""

from __future__ import annotations

import pytest
import torch

from graphprune.testing import ZooError, architectures, cases, example_inputs, tiny_config, tiny_model, unavailable

FEW = (
    "llama", "llama@mqa", "gemma3_text", "falcon@new", "gpt2", "bloom", "mixtral", "deepseek_v3@groups", "gpt_oss",
    "mamba2", "qwen3_next", "recurrent_gemma", "zamba2", "xlnet", "opt",
)  # fmt: skip


def test_every_registered_architecture_is_there_or_said_to_be_missing():
    assert len(architectures()) == 186
    assert set(unavailable()) == {"gemma3n", "gemma4_assistant", "gemma4_unified_assistant"}
    assert all(len(reason) > 20 for reason in unavailable().values())
    assert set(architectures()) <= set(cases())
    assert len(cases()) > 210


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FEW else pytest.mark.slow) for c in cases()])
@torch.no_grad()
def test_a_case_runs_and_nothing_in_it_is_constant(case):
    model = tiny_model(case)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 8e7
    logits = model(**example_inputs(model)).logits
    assert torch.isfinite(logits).all()
    assert 0.02 < logits.std() < 30
    constant = [n for n, p in model.named_parameters() if p.numel() > 1 and p.unique().numel() == 1]
    assert constant == []


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, same, other = tiny_model("llama"), tiny_model("llama"), tiny_model("llama", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


def test_sizes_cannot_be_confused():
    config = tiny_config("llama")
    names = (
        "vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads num_hidden_layers head_dim"
    )
    sizes = [getattr(config, name) for name in names.split()]
    assert len(set(sizes)) == len(sizes)
    assert config.num_attention_heads * config.head_dim != config.hidden_size


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        ("gemma3_text", {"sliding_attention", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
        ("nemotron_h", {"linear_attention", "moe", "full_attention", "mlp"}),
    ],
)
def test_every_kind_of_layer_occurs(case, kinds):
    assert set(tiny_config(case).layer_types) == kinds


def test_changes_reach_the_config_and_its_decoder():
    assert tiny_config("llama", num_hidden_layers=5).num_hidden_layers == 5
    assert tiny_config("gemma3", num_hidden_layers=5).get_text_config(decoder=True).num_hidden_layers == 5


def test_what_is_unknown_is_told_with_what_is_near():
    with pytest.raises(ZooError, match=r"unknown architecture 'lama'\. Did you mean 'llama'"):
        tiny_model("lama")
    with pytest.raises(ZooError, match=r"unknown case 'falcon@nwe'.*falcon@new"):
        tiny_model("falcon@nwe")
    with pytest.raises(ZooError, match="has no field 'num_layer'"):
        tiny_config("llama", num_layer=3)
    with pytest.raises(ZooError, match="'gemma3n' does not build here: its vision tower needs"):
        tiny_model("gemma3n")
