"""Cut constants come back: from a file of their own, or from among the weights of a self-contained folder."""

import pytest
import torch
import transformers as tf

from graphprune.checkpoint import load, save, verify_folder
from graphprune.checkpoint.constants import CONSTANTS, read_constants
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import CheckpointError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.decoders import tokens

CONFIGS = {
    "ctrl": lambda: tf.CTRLConfig(vocab_size=97, n_positions=64, n_embd=48, dff=40, n_layer=2, n_head=4),
    "xglm": lambda: tf.XGLMConfig(
        vocab_size=97, max_position_embeddings=64, d_model=48, ffn_dim=40, num_layers=2, attention_heads=4
    ),
}


def pruned(name, units=(0, 7, 8)):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return without(model, units)


def without(model, units):
    graph = trace(model)
    (hidden,) = graph.select(role="hidden")
    return reshape(model, PrunePlan.remove(graph, {hidden.name: units}), graph)


@torch.no_grad()
def assert_same(one, other):
    for model in (one, other):
        model.generation_config.pad_token_id = 0
    assert torch.equal(one(tokens()).logits, other(tokens()).logits)
    mine, theirs = (m.generate(tokens(), max_new_tokens=4, min_new_tokens=4, do_sample=False) for m in (one, other))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tier", ["graphprune", "hf-remote-code"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_table_comes_back(name, tier, tmp_path):
    model = pruned(name)
    assert not history_of(model).stock
    assert "a constant per unit" in history_of(model).why_not
    before = set(model.state_dict())
    save(model, tmp_path / "out", targets=[tier])
    assert set(model.state_dict()) == before, "what is stored in the folder is no matter of the model in memory"
    manifest = Manifest.read(tmp_path / "out")
    assert (manifest.tier, manifest.constants) == (tier, CONSTANTS if tier == "graphprune" else None)
    assert (CONSTANTS in manifest.files) == (tier == "graphprune")
    again = load(tmp_path / "out")
    assert type(again) is type(model)
    assert set(again.state_dict()) == before
    assert_same(model, again)
    assert not any(n.startswith("_graphprune_cut") for n in vars(again))

    twice = without(again, (3,))
    save(twice, tmp_path / "twice", targets=[tier])
    assert_same(twice, load(tmp_path / "twice"))
    with torch.no_grad():
        verify_folder(tmp_path / "twice", tokens(), twice(tokens()).logits)


@pytest.mark.parametrize("tier", ["graphprune", "hf-remote-code"])
def test_constants_have_the_dtype_they_were_saved_in_or_the_chosen_one(tier, tmp_path):
    model = pruned("xglm")
    save(model, tmp_path / "out", targets=[tier])
    assert load(tmp_path / "out", dtype=torch.bfloat16).model.embed_positions.weights.dtype == torch.bfloat16
    save(model.to(torch.bfloat16), tmp_path / "short", targets=[tier])
    assert load(tmp_path / "short").model.embed_positions.weights.dtype == torch.bfloat16


def test_without_cut_constants_there_is_no_such_file(tmp_path):
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS["ctrl"]()).eval()
    save(model, tmp_path / "out")
    assert Manifest.read(tmp_path / "out").constants is None
    assert not (tmp_path / "out" / CONSTANTS).exists()


def test_constants_that_are_missing_or_damaged_are_told(tmp_path):
    folder = save(pruned("ctrl"), tmp_path / "out", targets=["graphprune"])
    (folder / CONSTANTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{CONSTANTS}: expected .* bytes, got 7"):
        load(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder, verify=False)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_constants(folder / "nowhere.safetensors")
    manifest = Manifest.read(folder)
    manifest.model_copy(update={"constants": None}).write(folder)
    with pytest.raises(CheckpointError, match=r"expected a constant 'transformer.pos_encoding' .* got none"):
        load(folder, verify=False)
