"""Configs are read without running what comes with them."""

import json

import pytest
import transformers as tf

from graphprune.checkpoint import load_model, save
from graphprune.checkpoint.config import auto_for, read_config
from graphprune.checkpoint.manifest import MANIFEST
from graphprune.cli.models import structure
from graphprune.errors import CheckpointError
from graphprune.trace import trace
from tests.checkpoint.test_save import pruned
from tests.decoders import config as decoder
from tests.decoders import tiny

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).write_text("executed")


class MineConfig(LlamaConfig):
    model_type = "mine"


class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def own_code(tmp_path):
    """A checkpoint with modelling code, and the file that this code writes when it is run."""
    folder, marker = tmp_path / "mine", tmp_path / "executed"
    tiny("llama").save_pretrained(folder)
    names = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}
    change(folder, model_type="mine", architectures=["Mine"], auto_map=names)
    (folder / "modeling_mine.py").write_text(CODE.format(marker=str(marker)))
    return folder, marker


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("door", [structure, load_model, lambda name: read_config(name)])
def test_code_that_comes_along_is_not_run_unless_it_is_trusted(own_code, door):
    folder, marker = own_code
    with pytest.raises(CheckpointError) as caught:
        door(str(folder))
    message = str(caught.value)
    assert not marker.exists()
    assert f"'{folder}' comes with code of its own (AutoConfig is modeling_mine.MineConfig, " in message
    assert f"nothing of it was executed. Building the model would run modeling_mine.py from {folder}" in message
    assert message.endswith("if you trust it, pass --trust-remote-code (trust_remote_code=True)")


def test_trusted_code_is_run_and_traced(own_code):
    folder, marker = own_code
    model = structure(str(folder), trust_remote_code=True)
    assert marker.exists()
    assert type(model).__name__ == "Mine"
    assert trace(model) == trace(tiny("llama"))
    assert type(load_model(folder, trust_remote_code=True)[0]).__name__ == "Mine"


def test_known_types_need_no_code(own_code):
    """Transformers has a class of its own for this type, and takes that."""
    folder, marker = own_code
    change(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert type(structure(str(folder))).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_a_known_config_with_an_unknown_model_is_refused_too(own_code):
    folder, marker = own_code
    change(
        folder, model_type="vit", architectures=["Mine"], auto_map={"AutoModelForCausalLM": "them--modeling_mine.Mine"}
    )
    with pytest.raises(CheckpointError, match=r"would run modeling_mine.py from them, with all your rights"):
        structure(str(folder))
    assert not marker.exists()


def test_a_config_file_is_read_like_its_folder(tmp_path):
    decoder("llama").save_pretrained(tmp_path)
    file = (tmp_path / "config.json").rename(tmp_path / "other-name.json")
    assert trace(structure(str(file))) == trace(tiny("llama"))


def test_a_task_must_fit_the_type():
    config = decoder("llama")
    assert auto_for("here", config, "sequence-classification") is tf.AutoModelForSequenceClassification
    with pytest.raises(
        CheckpointError, match=r"a config of type 'llama' is made for causal-lm, .*, not for 'masked-lm'"
    ):
        auto_for("here", config, "masked-lm")


def test_a_self_contained_folder_is_not_taken_for_the_unpruned_model(tmp_path):
    folder = save(pruned("llama"), tmp_path / "small")
    (folder / MANIFEST).unlink()  # as save_pretrained leaves it
    for door in (structure, load_model):
        with pytest.raises(CheckpointError, match=r"modeling_graphprune.LlamaForCausalLM\), and nothing"):
            door(str(folder))
