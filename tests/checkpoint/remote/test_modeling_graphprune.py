"""The modelling file that folders carry: a pruned model does with it whatever the stock model does."""

import ast
import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import nn

from graphprune.checkpoint import save
from graphprune.checkpoint.manifest import Manifest
from graphprune.checkpoint.remote import modeling_graphprune
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.checkpoint.test_constants import pruned as without_channels
from tests.checkpoint.test_save import answers, assert_same, pruned
from tests.decoders import DECODERS, tiny, tokens


def written(model, folder):
    save(model, folder, targets=["hf-remote-code"])
    return folder


def loaded(folder, **options):
    """The folder as the auto classes load it, but for the copy of the file: a fresh process is for test_verify."""
    kind = getattr(modeling_graphprune, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def with_static_cache(model):
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    return model.generate(tokens(), **settings, cache_implementation="static", disable_compile=True)


def without_layers(name, units, **changes):
    model = tiny(name, **changes)
    graph = trace(model)
    (layers,) = graph.select(role="layer")
    return reshape(model, PrunePlan.remove(graph, {layers.name: units}), graph)


def test_the_file_needs_torch_and_transformers_alone():
    source = Path(modeling_graphprune.__file__).read_text()
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names == {"__future__", "collections", "contextlib", "copy", "torch", "transformers", "typing"}
    assert not {"pickle", "torch.load", "exec(", "eval("} & set(source.split())


@pytest.mark.parametrize("name", DECODERS)
def test_logits_text_and_the_next_folder_are_the_same(name, tmp_path):
    model = pruned(name)
    again = loaded(written(model, tmp_path / "one"))
    assert_same(model, again)
    if name != "falcon-alibi":  # whose stock class takes no static cache
        assert torch.equal(with_static_cache(again), answers(model)[1])
    type(again).register_for_auto_class("AutoModelForCausalLM")  # as loading through an auto class does
    again.save_pretrained(tmp_path / "two")
    for file in ("config.json", "modeling_graphprune.py"):
        assert (tmp_path / "two" / file).read_text() == (tmp_path / "one" / file).read_text()
    assert_same(model, loaded(tmp_path / "two"))


@pytest.mark.parametrize(("name", "units"), [("gemma3_text", (0, 2)), ("qwen2", (1,)), ("gpt2", (0,)), ("bloom", (1,))])
def test_layers_that_went_are_not_counted_any_more(name, units, tmp_path):
    model = without_layers(name, units, **({"num_hidden_layers": 6} if name == "gemma3_text" else {}))
    again = loaded(written(model, tmp_path / "out"))
    assert again.config.num_hidden_layers == model.config.num_hidden_layers
    assert_same(model, again)
    config = tf.AutoConfig.from_pretrained(tmp_path / "out")  # anybody's, without the file
    assert config.num_hidden_layers == model.config.num_hidden_layers
    assert getattr(config, "layer_types", None) == getattr(model.config, "layer_types", None)


@pytest.mark.parametrize("name", ["llama-tied-bias", "mixtral", "bloom", "phi3"])
def test_copies_pickles_and_kinds(name, tmp_path):
    model = pruned(name)
    again = loaded(written(model, tmp_path / "out"))
    for other in (copy.deepcopy(again), pickle.loads(pickle.dumps(again)), loaded(tmp_path / "out", device_map="auto")):
        assert type(other).__name__ == type(model).__name__
        assert_same(model, other)
    short = loaded(tmp_path / "out", dtype=torch.bfloat16)
    assert {p.dtype for p in short.parameters()} == {torch.bfloat16}
    fresh = type(again)(again.config)  # random weights
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (fresh.get_output_embeddings().weight is fresh.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_gradients_with_and_without_checkpointing(name, tmp_path):
    again = loaded(written(pruned(name), tmp_path / "out"))

    def gradients():
        again.zero_grad()
        again(tokens(), labels=tokens(), use_cache=False).loss.backward()
        return [p.grad.clone() for p in again.parameters()]

    plain = gradients()
    again.train()
    for module in again.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    again.gradient_checkpointing_enable()
    for mine, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_on_top(name, tmp_path):
    peft = pytest.importorskip("peft")
    base = loaded(written(pruned(name), tmp_path / "out"))
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        expected = adapted(tokens()).logits
        adapted.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(loaded(tmp_path / "out"), tmp_path / "adapter").eval()
        assert torch.equal(again(tokens()).logits, expected)
        again.merge_and_unload().save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(loaded(tmp_path / "merged")(tokens()).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_while_loading(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = tiny("llama", hidden_size=64, head_dim=32, num_attention_heads=4, intermediate_size=192)
    graph = trace(model)
    heads, channels = (graph.select(role=role).names for role in ("attention.group", "mlp.channel"))
    # The kernels of bitsandbytes for CPUs want multiples of 32 and 64.
    reshape(model, PrunePlan.remove(graph, {heads[1]: [0, 2], channels[2]: range(64)}), graph)
    kind = tf.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)
    again = loaded(written(model, tmp_path / "out"), quantization_config=kind)
    assert type(again.model.layers[2].mlp.down_proj).__name__ == ("Linear4bit" if bits == 4 else "Linear8bitLt")
    with torch.no_grad():
        mine, theirs = model(tokens()).logits, again(tokens()).logits.float()
    assert torch.nn.functional.cosine_similarity(mine, theirs, dim=-1).min() > 0.9


def test_a_constant_that_is_made_anew_for_longer_texts_is_told(tmp_path):
    again = loaded(written(without_channels("xglm"), tmp_path / "out"))
    again(tokens())
    with pytest.raises(ValueError, match="has made 'weights' anew, which was cut with pruned units"):
        again(torch.arange(5, 95)[None])
    again(tokens())


def test_a_stock_class_that_takes_no_static_cache():
    with pytest.raises(RuntimeError, match="must match the size"):
        with_static_cache(tiny("falcon-alibi"))


def test_without_a_recipe_a_class_is_the_stock_one():
    stock = tiny("llama")
    mine = modeling_graphprune.LlamaForCausalLM(stock.config).eval()
    mine.load_state_dict(stock.state_dict())
    assert_same(stock, mine)
    assert modeling_graphprune.LlamaForCausalLM is modeling_graphprune.LlamaForCausalLM
    with pytest.raises(AttributeError, match="has no model class 'Llama'"):
        modeling_graphprune.Llama  # noqa: B018


def test_the_recipe_in_the_config_is_readable(tmp_path):
    folder = written(pruned("opt"), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_graphprune.OPTForCausalLM"}
    recipe = config["graphprune"]
    assert recipe["attributes"]["model.decoder.layers.2.self_attn"] == {"num_heads": 6}
    assert recipe["shapes"]["model.decoder.layers.2.fc1.weight"] == "38 48"
    assert Manifest.read(folder).tier == "hf-remote-code"
