"""A checkpoint opens as the model that loading gives, without its weights."""

import json

import pytest
import torch

import graphprune as gp
from graphprune.checkpoint import load_model
from graphprune.errors import CheckpointError, StreamError
from graphprune.stream.opening import open_deferred, structure_of
from graphprune.stream.tensor import DeferredTensor, node_of
from tests.decoders import tiny


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bloom"])
def test_names_shapes_and_values_are_those_of_the_loaded_model(name, tmp_path):
    tiny(name).save_pretrained(tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    opened = open_deferred(tmp_path / "model")
    assert type(opened) is type(loaded)
    assert not opened.training
    assert opened.config.to_dict() == loaded.config.to_dict()
    assert opened.generation_config.to_dict() == loaded.generation_config.to_dict()
    expected, got = loaded.state_dict(), opened.state_dict()
    assert got.keys() == expected.keys()
    assert all(isinstance(p, DeferredTensor) for p in opened.parameters())
    assert all(torch.equal(node_of(got[n]).value(), t) for n, t in expected.items())


def test_what_is_traced_has_no_weights_and_the_same_graph(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    opened = open_deferred(tmp_path / "model")
    hollow = structure_of(opened)
    assert not any(isinstance(p, DeferredTensor) for p in hollow.parameters())
    assert isinstance(next(opened.parameters()), DeferredTensor)
    assert gp.trace(hollow) == gp.trace(tiny("llama"))


def test_code_of_a_checkpoint_is_not_run(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    file.write_text(json.dumps(config))
    (tmp_path / "model" / "own.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(CheckpointError, match=r"comes with code of its own .*nothing of it was executed"):
        open_deferred(tmp_path / "model")
    assert not (tmp_path / "owned").exists()


def test_quantised_weights_are_not_streamed(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(StreamError, match="are quantised"):
        open_deferred(tmp_path / "model")
