"""A model that is written as one of another class."""

import json

import torch
from transformers import AutoModelForCausalLM

from graphprune.checkpoint import load, save, verify_folder
from graphprune.checkpoint.manifest import Manifest
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.decoders import tiny, tokens


def test_a_folder_of_another_class_is_whole_in_itself(tmp_path):
    model = tiny("llama", hidden_size=40)
    graph = trace(model)
    names = graph.select(role="attention.group").names
    reshape(model, PrunePlan.remove(graph, {name: [1] for name in names}), graph)
    before = model.config
    other = history_of(model).stand_in.architecture
    save(model, tmp_path / "small")
    assert model.config is before
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["architectures"] == [other] != [type(model).__name__]
    manifest = Manifest.read(tmp_path / "small")
    assert (manifest.tier, manifest.architecture) == ("hf", other)
    assert manifest.base_config["model_type"] == config["model_type"]
    with torch.no_grad():
        assert verify_folder(tmp_path / "small", tokens(), model(tokens()).logits) == 0

    again = load(tmp_path / "small")
    assert type(again).__name__ == other
    assert history_of(again).stand_in is None
    graph = trace(again)
    reshape(again, PrunePlan.remove(graph, {graph.select(role="layer").names[0]: [1]}), graph)
    save(again, tmp_path / "smaller")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller")
    with torch.no_grad():
        assert torch.equal(stock(tokens()).logits, again(tokens()).logits)


def test_cutting_on_forgets_the_stand_in():
    model = tiny("llama", hidden_size=40)
    graph = trace(model)
    names = graph.select(role="attention.group").names
    reshape(model, PrunePlan.remove(graph, {name: [1] for name in names}), graph)
    assert history_of(model).stand_in is not None
    graph = trace(model)
    reshape(model, PrunePlan.remove(graph, {name: [0] for name in names}), graph)
    assert history_of(model).stock and history_of(model).stand_in is None  # 4 of 8 heads divide 40
