"""Names in files that lead back to the weights, whatever the rules for them make of the layers that are left."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, conversion_mapping
from transformers.core_model_loading import Inkling2IndexOffsetWeightRename, WeightRenaming

import graphprune as gp
from graphprune.checkpoint.stored_names import in_original_format, kept_tensors
from graphprune.errors import CheckpointError
from tests.decoders import DECODERS, tiny, tokens
from tests.stream.plans import differing


@pytest.fixture
def rules(monkeypatch):
    """Sets transformers' rules for the names of a decoder's weights in files."""

    def put(*found):
        mapping = {**conversion_mapping._checkpoint_conversion_mapping_cache, "llama": list(found)}
        monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", mapping)

    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills it
    return put


def counted():
    """Files count these weights from the second layer on: they have none for a first one."""
    return Inkling2IndexOffsetWeightRename(r"gates\.(\d+)", r"layers.\1.mlp.gate_proj", offset=1)


@pytest.mark.parametrize("name", DECODERS)
def test_names_of_unpruned_models_are_those_of_their_checkpoints(name):
    assert in_original_format(tiny(name))


def test_tied_weights_are_kept_once():
    assert "lm_head.weight" not in kept_tensors(tiny("gpt2"))
    assert "lm_head.weight" in kept_tensors(tiny("llama"))


def test_a_name_that_is_not_read_again_is_not_written(rules, tmp_path):
    rules(counted())
    model = tiny("llama")
    assert not in_original_format(model)
    folder = gp.save(model, tmp_path / "out")
    assert "model.layers.0.mlp.gate_proj.weight" in load_file(folder / "model.safetensors")
    again, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_nor_is_it_on_the_way_from_file_to_file(rules, tmp_path):
    model = tiny("llama")
    graph = gp.trace(model)
    plan = gp.PrunePlan.remove(graph, {graph.select(role="layer").names[0]: [0]})
    model.save_pretrained(tmp_path / "model", save_original_format=False)
    rules(counted())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    gp.save(gp.reshape(loaded, plan), tmp_path / "loaded")
    gp.apply(tmp_path / "model", plan, tmp_path / "streamed", prove=False)
    assert differing(tmp_path / "loaded", tmp_path / "streamed") == []


def test_what_is_found_by_no_name_is_refused(rules):
    rules(counted(), WeightRenaming(r"layers\.0\.mlp\.gate_proj", r"layers.0.mlp.up_proj"))
    with pytest.raises(CheckpointError, match=r"gate_proj.weight' of this LlamaForCausalLM cannot be written"):
        in_original_format(tiny("llama"))
