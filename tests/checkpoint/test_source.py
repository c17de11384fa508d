"""What is wrong with a model folder is said before transformers sees it."""

import json

import pytest
import torch

from graphprune.checkpoint import load_model
from graphprune.errors import CheckpointError
from tests.decoders import tiny


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    return tmp_path / "model"


def test_a_complete_folder_loads(folder):
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, tokenizer = load_model(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer is None


def test_a_missing_shard_is_named(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the \d weight files.*{shard.name}"):
        load_model(folder)


def test_a_cut_off_shard_is_named(folder):
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is no readable safetensors file"):
        load_model(folder)


def test_a_broken_index_is_named(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(CheckpointError, match="no index of weight files"):
        load_model(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.md": "hello"}, "has no config.json. Is it a model folder"),
        ({"adapter_config.json": "{}"}, "It is a PEFT adapter; merge it"),
        ({"config.json": "{}"}, "has neither model.safetensors nor"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, r"pytorch_model.bin only, which is pickled"),
    ],
)
def test_other_folders(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no model folder at"):
        load_model(tmp_path / "nowhere")


def test_an_unknown_hub_id_is_one_error():
    with pytest.raises(CheckpointError, match="'no-such-owner/no-such-model' cannot be loaded"):
        load_model("no-such-owner/no-such-model")


def test_weights_that_are_not_there_are_never_made_up(folder):
    """Transformers fills what it does not find with random numbers and goes on."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(CheckpointError, match=r"lack \d+ tensors of a .*: model\.layers\.3\..*They would be random"):
        load_model(folder)


def test_weights_of_another_size_are_named(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 40', '"intermediate_size": 44'))
    message = r"9 tensors have other sizes, such as '.*': expected \(\d+, \d+\), got \(\d+, \d+\)"
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_weights_that_nobody_uses_are_told(folder, caplog):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 2'))
    model, _ = load_model(folder)
    assert model.config.num_hidden_layers == 2
    assert "tensors that a LlamaForCausalLM does not use: model.layers.2." in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "../../elsewhere.safetensors",
        "/etc/passwd",
        "sub/../../x.safetensors",
        "..\\x.safetensors",
        "weights.bin",
        7,
        None,
    ],
)
def test_an_index_that_leaves_the_folder_or_names_pickles_is_refused_unread(folder, name):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json.*(Nothing was read|no index of weight files)"):
        load_model(folder)


def test_an_index_that_names_a_folder_below_is_read(folder):
    shard = min(folder.glob("*.safetensors"))
    (folder / "below").mkdir()
    shard.rename(folder / "below" / shard.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{shard.name}"', f'"below/{shard.name}"'))
    assert load_model(folder)[0].num_parameters() == tiny("llama").num_parameters()


def test_an_empty_index_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="names of safetensors files inside of the folder, got none"):
        load_model(folder)


def test_a_shard_that_is_a_link_is_read(folder, tmp_path):
    """The Hub's cache is made of links, and so are folders of people with several disks."""
    shard = min(folder.glob("*.safetensors"))
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert load_model(folder)[0].num_parameters() == tiny("llama").num_parameters()
