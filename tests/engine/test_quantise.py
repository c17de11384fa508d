"""Which layers are quantised, and that nothing else changes."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from graphprune.engine import quantise
from graphprune.engine.quantise import check_available, quantisable, quantised, release, settings_of
from graphprune.errors import MissingExtraError, SpecError
from graphprune.packed import keep_trainable, packed_in
from graphprune.schema import Quantization
from graphprune.trace import trace
from tests.decoders import tiny, tokens

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 8}
bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")


def settings(kind="nf4", **options):
    return Quantization(kind=kind, **options)


def packed_layers(model):
    return {path for path, module in model.named_modules() if packed_in(module) is not None}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_model_quantised_in_memory_is_that_of_from_pretrained(name, kind, tmp_path):
    model = tiny(name, **({"n_embd": 64, "n_inner": 128} if name == "gpt2" else WIDE))
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    keep_trainable(expected)
    graph = trace(model)
    layers = quantisable(model, graph, settings(kind), CPU)
    found = quantised(model, layers, settings(kind), CPU, consume=False)
    assert set(layers) == packed_layers(found) == packed_layers(expected)
    assert settings_of(found) == settings(kind, double=kind != "int8") and settings_of(model) is None
    assert trace(found) == graph
    with torch.no_grad():
        assert torch.equal(found(tokens()).logits, expected(tokens()).logits)


def test_the_model_stays_or_is_emptied():
    model = tiny("gpt2", n_embd=64, n_inner=128)
    before = copy.deepcopy(model.state_dict())
    layers = quantisable(model, trace(model), settings(), CPU)
    twin = quantised(model, layers, settings(), CPU, consume=False)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert twin.lm_head.weight is twin.transformer.wte.weight  # tied as before
    with torch.no_grad():
        expected = twin(tokens()).logits
        assert torch.equal(quantised(model, layers, settings(), CPU, consume=True)(tokens()).logits, expected)
    assert list(model.parameters()) == list(model.buffers()) == []
    release(twin)
    assert list(twin.parameters()) == [] and twin.transformer.h[0].mlp.c_fc.__dict__.get("quant_state") is None


def test_codes_of_8_bit_layers_are_let_go_of_in_both_places():
    model = tiny("llama", **WIDE)
    twin = quantised(
        model, quantisable(model, trace(model), settings("int8"), CPU), settings("int8"), CPU, consume=True
    )
    layer = twin.model.layers[0].mlp.up_proj
    with torch.no_grad():
        twin(tokens())
    assert layer.state.CB is not None
    release(twin)
    assert layer.state.CB is None


def test_routers_output_layers_tied_weights_and_what_the_spec_names_stay():
    class Router(nn.Module):
        """Linear gates, as modelling code that comes with checkpoints has them."""

    model = tiny("llama", **WIDE)
    graph = trace(model)
    assert "lm_head" not in quantisable(model, graph, settings(), CPU)
    some = quantisable(model, graph, settings(skip_modules=("down_proj", "layers.0.mlp.up_proj")), CPU)
    assert len(some) == 21 - 3 - 1
    moe = tiny("mixtral", **WIDE)
    graph = trace(moe)
    gate = "model.layers.0.mlp.gate"
    owner = moe.get_submodule("model.layers.0.mlp")
    owner.gate = nn.Linear(64, 5, bias=False)  # the graph calls its weight as before
    layers = quantisable(moe, graph, settings("int8"), CPU)
    assert gate not in layers and "model.layers.0.self_attn.q_proj" in layers
    nothing = graph.model_copy(update={"groups": ()})
    assert gate in quantisable(moe, nothing, settings("int8"), CPU)


def test_weights_that_others_read_stay():
    model = tiny("llama", **WIDE)
    name = "model.layers.0.mlp.up_proj"
    graph = trace(model).model_copy(update={"readers": {f"{name}.weight": ("model.layers.0.mlp",)}})
    assert name not in quantisable(model, graph, settings(), CPU)


def test_4_bit_layers_that_cpus_compute_wrongly_stay():
    model = tiny("llama", **WIDE, num_attention_heads=8)
    model.model.layers[1].mlp.down_proj = nn.Linear(96, 64)
    graph = trace(tiny("llama", **WIDE))
    name = "model.layers.1.mlp.down_proj"
    assert name not in quantisable(model, graph, settings("nf4"), CPU)
    assert name in quantisable(model, graph, settings("int8"), CPU)
    assert name in quantisable(model, graph, settings("nf4"), torch.device("cuda"))


def test_a_device_that_bitsandbytes_does_not_run_on(monkeypatch):
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(SpecError, match=r"quantization: nf4 on 'cpu': bitsandbytes .* runs on cuda\. Use such"):
        check_available(settings(), CPU)


def test_without_the_package_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(quantise.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"int8 needs .* pip install 'graphprune\[bitsandbytes\]'"):
        check_available(settings("int8"), CPU)
