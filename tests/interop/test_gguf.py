"""What GGUF asks of a saved model: names and metadata that the ``gguf`` package knows, one size for all layers.

llama.cpp's converter is no package. What it writes for this family is written here by hand (names from ``gguf``'s own
table, query and key rows in its order), and read back by transformers.
"""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from graphprune.checkpoint.manifest import Manifest
from tests.interop.folders import ids, load, logits

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def in_pairs(weight, heads):
    """Rows of rotary halves as llama.cpp has them: next to each other."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def written(folder, file):
    """A GGUF file in float32, as llama.cpp's converter lays it out."""
    config = AutoConfig.from_pretrained(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("pruned")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensor = in_pairs(tensor, config.num_attention_heads) if ".q_proj." in name else tensor
        tensor = in_pairs(tensor, config.num_key_value_heads) if ".k_proj." in name else tensor
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        writer.add_tensor(known, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_stock_folder_has_what_a_gguf_file_holds(stock, tmp_path):
    written(stock, tmp_path / "model.gguf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    assert again.config.intermediate_size == 256
    tokens = ids(stock)
    torch.testing.assert_close(logits(again, tokens), logits(load(stock), tokens), rtol=0, atol=1e-4)


def test_layers_of_different_sizes_have_no_place_in_a_config_that_a_converter_reads(folders):
    """A converter reads sizes from config.json: of a folder that no stock class loads they are those before pruning."""
    folder = folders["graphprune"]
    assert Manifest.read(folder).tier != "hf"
    shapes = {t.shape[0] for n, t in load_file(folder / "model.safetensors").items() if n.endswith("gate_proj.weight")}
    assert shapes == {512, 256}
    assert AutoConfig.from_pretrained(folder).intermediate_size == 512
