"""A manifest decides how weights are read, so nobody may have changed it."""

import json

import pytest

import graphprune as gp
from graphprune.checkpoint.manifest import Manifest, records, sha256
from graphprune.errors import CheckpointError
from tests.decoders import tiny


@pytest.fixture
def folder(tmp_path):
    model = tiny("llama")
    graph = gp.trace(model)
    plan = gp.PrunePlan.remove(graph, {graph.select(role="mlp.channel").names[0]: [1, 2]})
    return gp.save(gp.reshape(model, plan, graph), tmp_path / "small")


def edit(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"tier": "hf"},
        {"architecture": "GPT2LMHeadModel"},
        {"base_config": {}},
        {"steps": []},
        {"files": {}},
        {"load": "import os"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_edited_manifest_is_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=r"manifest\.json was edited"):
        gp.load(folder)


def test_a_manifest_that_names_files_elsewhere_is_refused(folder):
    edit(folder, steps=[{"plan": "../plan.json", "graph": "graph.json"}], checksum="")
    with pytest.raises(CheckpointError, match=r"name of a file in this folder, got '\.\./plan\.json'"):
        gp.load(folder)


def test_a_manifest_of_before_checksums_is_read(folder):
    edit(folder, checksum="")
    assert gp.load(folder).num_parameters() < tiny("llama").num_parameters()


def test_what_is_said_of_floats_and_numbers_as_keys_survives(folder):
    read = Manifest.read(folder)
    changed = read.model_copy(
        update={"base_config": {"eps": 1e-06, "inf": {"__float__": "Infinity"}, "labels": {0: 1.5}}}
    )
    changed.write(folder)
    assert Manifest.read(folder).base_config["eps"] == 1e-06


def test_files_whose_hash_is_known_are_not_read_again(folder):
    weights = folder / "model.safetensors"
    known = records(folder)["model.safetensors"]
    assert known.sha256 == sha256(weights)
    weights.write_bytes(b"")
    assert records(folder, {"model.safetensors": known})["model.safetensors"] == known
    assert records(folder)["model.safetensors"].bytes == 0
