"""Damage is found before a tensor is read, and named with its file."""

import json

import pytest
import torch
from safetensors.torch import save_file

import graphprune as gp
from graphprune.errors import CheckpointError
from graphprune.stream.files import deferred_weights, stored
from tests.decoders import tiny
from tests.stream.plans import thirds

KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.uint8]


@pytest.fixture
def checkpoint(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    return tmp_path


def refused(checkpoint, message):
    """Applies a plan, expects an error that says so, and nothing left."""
    with pytest.raises(CheckpointError, match=message):
        gp.apply(checkpoint / "model", thirds(gp.trace(tiny("llama"))), checkpoint / "small", prove=False)
    assert [p.name for p in checkpoint.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_number_comes_back(tmp_path, kind):
    tensors = {
        "t": torch.arange(15).reshape(3, 5).to(kind),
        "one": torch.ones((), dtype=kind),
        "none": torch.ones(0, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    found = deferred_weights([tmp_path / "x.safetensors"])
    for name, tensor in tensors.items():
        value = found[name].node.value()
        assert (value.dtype, value.shape) == (tensor.dtype, tensor.shape)
        assert value.float().tolist() == tensor.float().tolist()


def test_what_was_read_can_be_changed_and_the_file_stays(tmp_path):
    save_file({"t": torch.ones(4)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    deferred_weights([tmp_path / "x.safetensors"])["t"].node.value().zero_()
    assert (tmp_path / "x.safetensors").read_bytes() == before


@pytest.mark.parametrize("bytes_lost", [1, 100, 20_000])
def test_a_truncated_shard_is_named(checkpoint, bytes_lost):
    shard = sorted((checkpoint / "model").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-bytes_lost])
    refused(checkpoint, rf"{shard.name} is no readable safetensors file")


@pytest.mark.parametrize("place", range(0, 400, 17))
def test_a_flipped_bit_in_a_header_is_an_error_or_harmless(checkpoint, place):
    """Whatever it hits (a length, a name, a shape, an offset): never a traceback, never other numbers in silence."""
    shard = min((checkpoint / "model").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[place] ^= 2
    shard.write_bytes(content)
    try:
        found = stored([shard])
    except CheckpointError:
        return
    assert len(found) > 0  # the name or the metadata were hit: opening the model tells
    if found.keys() != stored_names(checkpoint, shard):
        refused(checkpoint, r"lack \d+ tensors|do not fit its config|is in two files")


def stored_names(checkpoint, shard):
    index = json.loads((checkpoint / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    return {name for name, file in index.items() if file == shard.name}


def test_a_tensor_in_two_files_is_named(tmp_path):
    for name in ("a", "b"):
        save_file({"t": torch.ones(4)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="'t' is in two files"):
        stored(sorted(tmp_path.iterdir()))


def test_a_shape_that_contradicts_the_config_is_named(checkpoint):
    config = checkpoint / "model" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 40', '"intermediate_size": 44'))
    with pytest.raises(CheckpointError, match=r"9 tensors have other sizes, such as '.*': expected \(\d+, \d+\), got"):
        gp.apply(checkpoint / "model", thirds(gp.trace(tiny("llama"))), checkpoint / "small", prove=False)


def test_a_missing_shard_is_named(checkpoint):
    shard = sorted((checkpoint / "model").glob("*.safetensors"))[1]
    shard.unlink()
    refused(checkpoint, rf"lacks 1 of the \d weight files.*{shard.name}")


def test_pickles_are_never_opened(checkpoint):
    for file in (checkpoint / "model").glob("model*"):
        file.unlink()
    (checkpoint / "model" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    refused(checkpoint, r"pytorch_model\.bin only, which is pickled code.*save_pretrained it")
