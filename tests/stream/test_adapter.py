"""Adapters are merged by PEFT's own arithmetic, and refused where they were trained on another base."""

import json

import peft
import pytest
import torch

import graphprune as gp
from graphprune.checkpoint import load_model
from graphprune.errors import CheckpointError
from graphprune.stream.adapter import merge_adapter
from graphprune.stream.opening import open_deferred
from graphprune.stream.tensor import node_of
from tests.decoders import tiny

CASES = [
    ("llama", torch.bfloat16, {"r": 4, "target_modules": "all-linear", "use_rslora": True}),
    ("llama", torch.float16, {"r": 4, "lora_alpha": 9, "target_modules": ["q_proj", "embed_tokens"]}),
    ("llama", torch.float32, {"r": 4, "target_modules": ["q_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2}}),
    ("llama", torch.float32, {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("llama", torch.float32, {"r": 4, "target_modules": ["q_proj"], "use_dora": True}),
    ("gpt2", torch.float32, {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("mixtral", torch.bfloat16, {"r": 2, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}),
]


def adapted(name, dtype, options, folder):
    """Saves a tiny model and a random adapter for it."""
    model = tiny(name).to(dtype)
    model.save_pretrained(folder / "model")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
    for tensor_name, tensor in wrapped.named_parameters():
        if "lora_" in tensor_name:
            torch.nn.init.normal_(tensor, std=0.1)
    wrapped.save_pretrained(folder / "adapter")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dtype", "options"), CASES, ids=[f"{c[0]}-{list(c[2])[-1]}" for c in CASES])
def test_merged_weights_are_those_of_peft_bit_by_bit(tmp_path, name, dtype, options):
    adapted(name, dtype, options, tmp_path)
    loaded, _ = load_model(tmp_path / "model")
    expected = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").merge_and_unload().state_dict()
    opened = open_deferred(tmp_path / "model")
    got = merge_adapter(opened, tmp_path / "adapter").state_dict()
    plain = open_deferred(tmp_path / "model").state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(node_of(got[n]).value(), t) for n, t in expected.items())
    assert any(not torch.equal(node_of(plain[n]).value(), t) for n, t in expected.items())


def refused(tmp_path, message):
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(open_deferred(tmp_path / "model"), tmp_path / "adapter")


@pytest.fixture
def pair(tmp_path):
    adapted("llama", torch.float32, {"r": 4, "target_modules": ["q_proj"]}, tmp_path)
    return tmp_path


def test_an_adapter_for_a_base_of_another_size_is_refused(pair):
    tiny("llama", hidden_size=32).save_pretrained(pair / "model")
    refused(pair, r"does not fit this model: .*size mismatch.*Give (that|the) model")


def test_an_adapter_for_another_architecture_is_refused(pair):
    for file in (pair / "model").iterdir():
        file.unlink()
    tiny("gpt2").save_pretrained(pair / "model")
    refused(pair, r"does not fit this model: Target modules .*q_proj.* not found")


def test_an_adapter_for_a_deeper_base_is_refused(pair):
    tiny("llama", num_hidden_layers=2).save_pretrained(pair / "model")
    refused(pair, r"has no place for 2 tensors such as '.*layers\.2\.")


def test_an_adapter_for_a_shallower_base_is_refused(pair):
    tiny("llama", num_hidden_layers=4).save_pretrained(pair / "model")
    refused(pair, r"would need 2 tensors such as '.*layers\.3\.")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"expected the folder of a PEFT adapter, got .* without adapter_config\.json"),
        ({"adapter_config.json": "{}", "adapter_model.bin": ""}, "Pickled adapters are not opened"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, "is no readable safetensors file"),
    ],
)
def test_other_folders(pair, files, message):
    for file in (pair / "adapter").iterdir():
        file.unlink()
    for name, text in files.items():
        (pair / "adapter" / name).write_text(text)
    refused(pair, message)


def test_adapters_that_are_no_lora_are_refused(pair):
    file = pair / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "IA3"}))
    refused(pair, "expected a LoRA adapter, got 'IA3'")


def test_nothing_is_left_of_a_refused_adapter(pair):
    tiny("llama", hidden_size=32).save_pretrained(pair / "model")
    graph = gp.trace(tiny("llama", hidden_size=32))
    plan = gp.PrunePlan.remove(graph, {graph.select(role="mlp.channel").names[0]: [1]})
    with pytest.raises(CheckpointError):
        gp.apply(pair / "model", plan, pair / "small", adapter=pair / "adapter", prove=False)
    assert not (pair / "small").exists()
