"""Weights are written as safetensors writes them, whole or not at all."""

import json
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import graphprune as gp
from graphprune.checkpoint import load_model
from graphprune.errors import CheckpointError
from graphprune.stream.opening import open_deferred
from graphprune.stream.tensor import deferred, node_of
from graphprune.stream.write import _write_file, checkpoint_state, write_deferred
from tests.decoders import tiny
from tests.stream.plans import differing, thirds


@pytest.fixture
def checkpoint(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model", max_shard_size="60KB")
    thirds(gp.trace(tiny("llama"))).save(tmp_path / "plan.json")
    return tmp_path


def test_a_file_is_that_of_safetensors_itself(tmp_path):
    kinds = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.uint8, torch.float64]
    tensors = {f"ü{i}": torch.arange(7 + i).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "a": torch.ones(3, 5).half()}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    record = _write_file(tmp_path / "ours", {n: node_of(deferred(t)) for n, t in tensors.items()}, lambda _: None)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert record.bytes == (tmp_path / "ours").stat().st_size


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_untouched_model_is_written_as_save_pretrained_does(name, tmp_path):
    """Shards, index, config and generation config, too."""
    model = tiny(name)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "theirs", max_shard_size=60_000)
    (tmp_path / "ours").mkdir()
    found = write_deferred(open_deferred(tmp_path / "model"), tmp_path / "ours", max_shard_size=60_000)
    assert differing(tmp_path / "theirs", tmp_path / "ours") == []
    assert len(found) > 2


def test_tied_weights_are_there_once():
    model = tiny("gpt2")
    names = set(checkpoint_state(model))
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


def test_where_there_is_no_room_nothing_is_begun(checkpoint, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"the weights need 0\.00 GB, and .* has 0\.00 GB free. Make room"):
        gp.apply(checkpoint / "model", checkpoint / "plan.json", checkpoint / "small", prove=False)
    assert sorted(p.name for p in checkpoint.iterdir()) == ["model", "plan.json"]


def test_a_disk_that_fills_up_leaves_nothing(checkpoint):
    """The system refuses files beyond a size, as it refuses all of them on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"small cannot be written: .*Nothing is left of it"):
            gp.apply(checkpoint / "model", checkpoint / "plan.json", checkpoint / "small", prove=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in checkpoint.iterdir()) == ["model", "plan.json"]
    gp.apply(checkpoint / "model", checkpoint / "plan.json", checkpoint / "small", prove=False)


KILLED = """
import os, signal, sys
import graphprune as gp
from graphprune.stream import write

calls, real = [], write._HashedFile.write

def dying(self, piece):
    calls.append(real(self, piece))
    if len(calls) == 12:
        os.kill(os.getpid(), signal.SIGKILL)

write._HashedFile.write = dying
gp.apply(*sys.argv[1:], prove=False)
"""


def test_kill_9_leaves_no_folder_and_the_next_run_cleans_up(checkpoint):
    arguments = [str(checkpoint / name) for name in ("model", "plan.json", "small")]
    died = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert not (checkpoint / "small").exists()
    assert [p.name for p in checkpoint.iterdir() if p.name.endswith(".partial")]
    gp.apply(*arguments, prove=False)
    assert sorted(p.name for p in checkpoint.iterdir()) == ["model", "plan.json", "small"]
    assert gp.load(checkpoint / "small").num_parameters() < load_model(checkpoint / "model")[0].num_parameters()
    assert json.loads((checkpoint / "small" / "manifest.json").read_text())["steps"]


def test_ctrl_c_leaves_nothing(checkpoint):
    def interrupted(done, _total):
        if done > 20_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gp.apply(
            checkpoint / "model", checkpoint / "plan.json", checkpoint / "small", progress=interrupted, prove=False
        )
    assert sorted(p.name for p in checkpoint.iterdir()) == ["model", "plan.json"]


def test_a_folder_with_something_in_it_is_left_alone(checkpoint):
    (checkpoint / "small").mkdir()
    (checkpoint / "small" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        gp.apply(checkpoint / "model", checkpoint / "plan.json", checkpoint / "small", prove=False)
    assert (checkpoint / "small" / "thesis.txt").read_text() == "mine"
