"""Recipes: found by comparing, proved by following, and where there is none the reason."""

import pytest
import torch
from torch import nn

from graphprune.checkpoint import load, save
from graphprune.checkpoint.manifest import Manifest
from graphprune.checkpoint.remote import Recipe, find_recipe, modeling_graphprune, recipe
from graphprune.checkpoint.tiers import best_tier
from graphprune.errors import CheckpointError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.checkpoint.test_save import assert_same, pruned
from tests.decoders import tiny


def test_a_recipe_has_the_shapes_of_the_model():
    model = pruned("bloom")
    found = find_recipe(history_of(model))
    assert isinstance(found, Recipe)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert [item["argument"] for item in found.config["graphprune"]["arguments"]] == ["alibi", "alibi"]
    assert found.loader == "AutoModelForCausalLM"


def test_what_is_no_data_is_told_and_the_next_tier_is_written(monkeypatch, tmp_path):
    cut = recipe.cut_model

    def odd(model, graph, plan):
        cut(model, graph, plan)
        model.odd = object()

    model = pruned("llama")
    monkeypatch.setattr(recipe, "cut_model", odd)
    reason = "'odd' of 'the model' is a object, which JSON cannot hold"
    assert find_recipe(history_of(model)) == reason
    folder = save(model, tmp_path / "out")
    manifest = Manifest.read(folder)
    assert (manifest.tier, manifest.why_not_remote) == ("graphprune", reason)
    assert not (folder / "modeling_graphprune.py").exists()
    assert_same(model, load(folder))
    with pytest.raises(
        CheckpointError, match=r"none of hf, hf-remote-code \(hf: layers differ.*; hf-remote-code: 'odd'"
    ):
        save(model, tmp_path / "other", targets=["hf", "hf-remote-code"])
    assert not (tmp_path / "other").exists()


def test_a_recipe_that_does_not_lead_there_is_not_used(monkeypatch):
    monkeypatch.setattr(modeling_graphprune, "_cut_tensors", lambda *_: None)
    told = find_recipe(history_of(pruned("llama")))
    assert (
        "following the recipe gives another model: 'model.layers.1.self_attn.q_proj.weight' has shape (18, 48)" in told
    )


def test_unknown_targets_are_named():
    with pytest.raises(CheckpointError, match="targets: expected some of hf, hf-remote-code, graphprune, got onnx"):
        best_tier(tiny("llama"), ["onnx"])
    with pytest.raises(CheckpointError, match="got none"):
        best_tier(tiny("llama"), [])
    assert best_tier(tiny("llama")).name == "hf"
    assert best_tier(tiny("llama"), ["hf-remote-code", "hf"]).name == "hf-remote-code"


def test_a_model_that_was_changed_otherwise_is_not_written(tmp_path):
    model = pruned("llama")
    model.lm_head.weight = nn.Parameter(torch.zeros(90, 48))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight': expected shape \(97, 48\).* got \(90, 48\)"):
        save(model, tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "bloom", "phi3", "gemma3_text"])
@torch.no_grad()
def test_what_the_file_loaded_is_pruned_and_saved_again(name, tmp_path):
    """Without the history that graphprune.load knows: the recipe in the config takes its place."""
    first = pruned(name)
    kind = getattr(modeling_graphprune, type(first).__name__)
    model = kind.from_pretrained(save(first, tmp_path / "one")).eval()
    assert_same(first, kind.from_pretrained(save(model, tmp_path / "as it is")).eval())
    graph = trace(model)
    units = {g.name: [0] for g in graph.select() if g.exact and g.size > g.minimum}
    reshape(model, PrunePlan.remove(graph, units), graph)
    manifest = Manifest.read(save(model, tmp_path / "two"))
    assert (manifest.tier, manifest.why_not_remote) == ("hf-remote-code", "")
    assert "a modelling file of its own" in manifest.why_not_hf
    assert_same(model, kind.from_pretrained(tmp_path / "two").eval())
    assert_same(model, load(tmp_path / "two"))
