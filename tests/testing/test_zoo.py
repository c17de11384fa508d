"""Tiny models of every architecture: they build, they run, nothing in them is constant, sizes cannot be confused."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest
import torch

from graphprune.testing import ZooError, architectures, cases, example_inputs, tiny_config, tiny_model, unavailable
from graphprune.testing.configs import pattern

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


SOME = [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in cases()]


@pytest.mark.parametrize("case", SOME)
@torch.no_grad()
def test_a_case_runs_and_nothing_in_it_is_constant(case):
    model = tiny_model(case)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 6e5
    inputs = example_inputs(model)
    padding = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    assert padding is None or padding not in inputs["input_ids"]
    logits = model(**inputs).logits
    assert torch.isfinite(logits).all()
    assert 0.3 < logits.std() < 3
    constant = [n for n, p in model.named_parameters() if p.numel() > 1 and p.unique().numel() == 1]
    assert constant == []
    assert [n for n, p in model.named_parameters() if not p.all()] == []


@pytest.mark.parametrize("case", SOME)
@torch.no_grad()
def test_rounding_does_not_grow_from_the_embedding_to_the_logits(case):
    model = tiny_model(case)
    logits = model(**example_inputs(model)).logits
    size = 1e-4  # well above rounding, well below where curvature shows
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight *= 1 + size * torch.randn_like(module.weight)
    change = model(**example_inputs(model)).logits - logits
    assert 0 < change.norm() < 10 * size * logits.norm()


@pytest.mark.parametrize("case", SOME)
def test_sizes_that_a_cut_could_confuse_differ(case):
    config = tiny_config(case).get_text_config(decoder=True)
    values = config.to_dict()
    names = "vocab_size hidden_size intermediate_size num_attention_heads head_dim q_lora_rank kv_lora_rank"
    sizes = {name: values.get(config.attribute_map.get(name, name)) for name in names.split()}
    sizes = {name: size for name, size in sizes.items() if isinstance(size, int)}
    assert len(set(sizes.values())) == len(sizes), sizes
    keys = values.get("num_key_value_heads")  # as many as queries where the class has no others
    assert keys is None or keys not in {size for name, size in sizes.items() if name != "num_attention_heads"}


def has_head_size(case):
    config = tiny_config(case).get_text_config(decoder=True)
    return "head_dim" in {field.name for field in dataclasses.fields(config)}


# But for one, whose class takes the width of a model for that of its heads together.
SIZED = [case for case in SOME if case.values[0] != "helium" and has_head_size(case.values[0])]


@pytest.mark.parametrize("case", SIZED)
def test_no_projection_is_square_where_heads_have_a_size_of_their_own(case):
    weights = [(n, p) for n, p in tiny_model(case).named_parameters() if "attn." in n and p.ndim == 2]
    assert [n for n, p in weights if p.shape[0] == p.shape[1] and not re.search("vision|audio", n)] == []


@pytest.mark.parametrize("case", SOME)
def test_a_layer_of_each_kind_with_a_state_can_go(case):
    config = tiny_config(case).get_text_config(decoder=True)
    kinds = Counter(getattr(config, "layer_types", None) or [])
    assert not [kind for kind, count in kinds.items() if count < 2 and kind not in {"moe", "mlp"}], kinds


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in cases() if "@" in case])
def test_a_variant_is_not_its_architecture_again(case):
    plain, variant = tiny_model(case.partition("@")[0]), tiny_model(case)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (plain, variant)]
    logits = [model(**example_inputs(model)).logits for model in (plain, variant)]
    assert shapes[0] != shapes[1] or not torch.allclose(*logits, atol=1e-2)


@pytest.mark.parametrize("case", ["gemma3", "gemma4", "got_ocr2", "git", "phi4_multimodal"])
def test_towers_are_smaller_than_the_decoder_and_of_another_width(case):
    model = tiny_model(case)
    width = model.config.get_text_config(decoder=True).hidden_size
    assert model.config.vision_config.hidden_size != width
    towers = sum(p.numel() for n, p in model.named_parameters() if "vision" in n or "image" in n or "audio" in n)
    assert 0 < towers < sum(p.numel() for p in model.parameters()) / 2


def test_several_codebooks_are_read_from_as_many_rows():
    model = tiny_model("musicgen")
    assert example_inputs(model, batch=3, length=5)["input_ids"].shape == (3 * 2, 5)
    assert model(**example_inputs(model, batch=3, length=5)).logits.shape == (3 * 2, 5, 97)


def test_kinds_of_layers_follow_the_full_size_pattern():
    assert pattern("aaabaaab", 4) == ["a", "b", "a", "b"]
    assert pattern("ccacsc" * 4, 6) == ["c", "a", "s", "c", "a", "s"]
    assert pattern("deeeeeee", 4) == ["d", "e", "e", "e"]
    assert len(pattern("aaabaaab", 5)) == 5


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
