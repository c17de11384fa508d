"""LoRA out: merged or beside the weights, the folder gives the logits that the model in memory gives."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import graphprune as gp
from graphprune.checkpoint import load, save
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import CheckpointError
from tests.decoders import tiny, tokens

peft = pytest.importorskip("peft")

SOME = ["q_proj", "down_proj"]


def logits(model):
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        return model.eval()(tokens()).logits


def units(graph, kind):
    """Which units go: in every layer alike, more in later layers, the first layer, or the first layer and these."""
    removed = {}
    for group in graph.groups:
        most = group.size - group.minimum
        if group.frozen is None and group.exact:
            if group.role == "layer":
                removed[group.name] = range(1 if "depth" in kind else 0)
            elif kind == "even":
                removed[group.name] = range(0 if group.layer is None else min(most, max(1, group.size // 4)))
            elif kind != "depth":
                removed[group.name] = range(min(most, group.layer or 0))
    return {name: which for name, which in removed.items() if len(which)}


def adapted(name, kind, *, adapter="default", **settings):
    """A pruned decoder with random adapters, and the folder's graph and plan."""
    model = tiny(name)
    model.config._experts_implementation = "eager"
    graph = gp.trace(model)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, **settings)
    wrapped = randomised(peft.get_peft_model(model, config, adapter_name=adapter))
    plan = gp.PrunePlan.remove(graph, units(graph, kind))
    gp.reshape(wrapped, plan, graph)
    return wrapped.eval()


def randomised(wrapped):
    for name, parameter in wrapped.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return wrapped


def reloaded(folder):
    """The model by the line in the manifest; with the base by stock code where its tier says so."""
    import transformers

    scope = {"graphprune": gp, "peft": peft, "transformers": transformers}
    exec(Manifest.read(folder).load, scope)
    return scope["model"]


def written(folder):
    return json.loads((folder / "adapter" / "adapter_config.json").read_text())


SETTINGS = {
    "plain": ("llama", {"target_modules": SOME}),
    "all linear layers": ("llama", {"target_modules": "all-linear"}),
    "an expression": ("llama", {"target_modules": r"model\.layers\.(1|2)\.mlp\.(up|down)_proj"}),
    "whole paths": ("llama", {"target_modules": ["model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"]}),
    "numbers of layers": ("llama", {"target_modules": SOME, "layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "exceptions": ("llama", {"target_modules": SOME, "exclude_modules": ["model.layers.1.self_attn.q_proj"]}),
    "ranks by layer": (
        "llama",
        {
            "target_modules": SOME,
            "rank_pattern": {"layers.1.mlp.down_proj": 4, "q_proj": 3},
            "alpha_pattern": {"layers.2.self_attn.q_proj": 32},
            "use_rslora": True,
        },
    ),
    "trained copies": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]}),
    "one trained copy": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["model.layers.1.mlp.down_proj"]}),
    "trained tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "biases": ("llama-tied-bias", {"target_modules": SOME, "bias": "all", "lora_bias": True}),
    "principal components": ("llama", {"target_modules": SOME, "init_lora_weights": "pissa"}),
    "orthonormal": ("llama", {"target_modules": SOME, "init_lora_weights": "olora"}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "fused": ("phi3", {"target_modules": "all-linear"}),
    "expert stacks": ("mixtral", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "down_proj"]}),
    "some expert stacks": (
        "mixtral",
        {
            "target_modules": ["v_proj"],
            "target_parameters": ["layers.1.mlp.experts.gate_up_proj", "layers.2.mlp.experts.down_proj"],
            "rank_pattern": {"layers.2.mlp.experts.down_proj": 3},
        },
    ),
}


@pytest.mark.parametrize("kind", ["even", "uneven", "depth", "depth and uneven"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:transformers")
def test_merged_or_beside_the_weights_it_is_the_same_model(settings, kind, tmp_path):
    name, options = SETTINGS[settings]
    wrapped = adapted(name, kind, **options)
    expected = logits(wrapped)
    merged = save(wrapped, tmp_path / "merged")
    assert not any("lora" in key for key in load_file(merged / "model.safetensors"))
    torch.testing.assert_close(logits(load(merged)), expected, rtol=0, atol=2e-5)

    apart = save(wrapped, tmp_path / "apart", merge_lora=False)
    again = reloaded(apart)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)
    mine, theirs = peft.get_peft_model_state_dict(wrapped), peft.get_peft_model_state_dict(again)
    assert {key: tensor.shape for key, tensor in mine.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    assert written(apart)["base_model_name_or_path"] == str(apart)
    assert torch.equal(logits(wrapped), expected), "the model in memory keeps its adapters"


@pytest.mark.parametrize("settings", ["plain", "ranks by layer", "trained copies", "expert stacks"])
def test_a_stock_base_takes_its_adapter_without_graphprune(settings, tmp_path):
    """Also what PEFT trains as a copy does not keep a config from describing the pruned model."""
    name, options = SETTINGS[settings]
    folder = save(adapted(name, "even", **options), tmp_path / "out", merge_lora=False)
    assert Manifest.read(folder).tier == "hf"
    assert "graphprune" not in Manifest.read(folder).load
    stock = AutoModelForCausalLM.from_pretrained(written(folder)["base_model_name_or_path"])
    peft.PeftModel.from_pretrained(stock, folder / "adapter")
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    assert torch.equal(logits(auto), logits(stock))


def test_a_config_that_still_fits_is_left_as_it_was(tmp_path):
    wrapped = adapted("llama", "uneven", target_modules=SOME, lora_alpha=16, rank_pattern={"layers.1.mlp.down_proj": 4})
    config = written(save(wrapped, tmp_path / "out", merge_lora=False))
    assert sorted(config["target_modules"]) == sorted(SOME)
    assert config["rank_pattern"] == {"layers.1.mlp.down_proj": 4}


def test_layers_that_moved_up_are_named_anew(tmp_path):
    options = {"target_modules": SOME, "layers_to_transform": [1, 2], "rank_pattern": {"layers.2.mlp.down_proj": 4}}
    config = written(save(adapted("llama", "depth", **options), tmp_path / "out", merge_lora=False))
    assert config["layers_to_transform"] is None
    assert r"model\.layers\.0\.mlp\.down_proj" in config["target_modules"]
    assert config["rank_pattern"] == {r"model\.layers\.1\.mlp\.down_proj": 4}


def test_an_adapter_may_have_any_name_and_lie_beside_others(tmp_path):
    wrapped = adapted("llama", "depth and uneven", adapter="first", target_modules=["model.layers.2.mlp.up_proj"])
    wrapped.add_adapter("second", peft.LoraConfig(r=3, target_modules=["v_proj", "model.layers.1.mlp.up_proj"]))
    randomised(wrapped).set_adapter("second")
    folder = save(wrapped, tmp_path / "out", merge_lora=False)
    again = reloaded(folder)
    assert torch.equal(logits(again), logits(wrapped))
    again.load_adapter(folder / "adapter" / "first", "first")
    again.set_adapter("first")
    wrapped.set_adapter("first")
    assert torch.equal(logits(again), logits(wrapped))
    wrapped.base_model.set_adapter(["first", "second"])
    with pytest.raises(CheckpointError, match=r"2 adapters are active at once \(first, second\)"):
        save(wrapped, tmp_path / "both", merge_lora=False)
    assert not (tmp_path / "both").exists()


def test_a_scale_of_one_s_own_is_written_down(tmp_path):
    """PEFT keeps ranks and alphas, and computes the scale anew."""
    wrapped = adapted("llama", "even", target_modules=SOME, use_rslora=True)
    for _, module in wrapped.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scale_layer(0.37)
    folder = save(wrapped, tmp_path / "out", merge_lora=False)
    torch.testing.assert_close(logits(reloaded(folder)), logits(wrapped), rtol=0, atol=1e-5)


def test_an_adapter_that_is_merged_for_now_is_written_once(tmp_path):
    wrapped = adapted("llama", "uneven", target_modules=SOME)
    expected = logits(wrapped)
    wrapped.merge_adapter()
    torch.testing.assert_close(logits(load(save(wrapped, tmp_path / "merged"))), expected, rtol=0, atol=1e-5)
    folder = save(wrapped, tmp_path / "apart", merge_lora=False)
    torch.testing.assert_close(logits(reloaded(folder)), expected, rtol=0, atol=1e-5)
    assert any(module.merged for module in wrapped.modules() if isinstance(module, peft.tuners.lora.LoraLayer))


def test_a_model_in_other_wrappers_keeps_its_adapters(tmp_path):
    wrapped = adapted("llama", "uneven", target_modules=SOME)
    folder = save(torch.compile(wrapped, backend="eager"), tmp_path / "out", merge_lora=False)
    assert torch.equal(logits(reloaded(folder)), logits(wrapped))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_tied_weight_is_not_merged_into(tmp_path):
    wrapped = adapted("llama-tied-bias", "even", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(CheckpointError, match=r"merged, it would change lm_head.weight and model.embed_tokens.weight"):
        save(wrapped, tmp_path / "merged")
    folder = save(wrapped, tmp_path / "apart", merge_lora=False)
    assert torch.equal(logits(reloaded(folder)), logits(wrapped))


def test_what_cannot_be_kept_is_refused(tmp_path):
    model = tiny("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.self_attn\.q_proj' carries an adapter, and"):
        save(model, tmp_path / "out")
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(CheckpointError, match=r"adapters of type PROMPT_TUNING are inputs rather than weights"):
        save(peft.get_peft_model(tiny("llama"), prompts), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_for_another_base_does_not_load_in_silence(tmp_path):
    folder = save(adapted("llama", "even", target_modules=SOME), tmp_path / "out", merge_lora=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(tiny("llama"), folder / "adapter")
