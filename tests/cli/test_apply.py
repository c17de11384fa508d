"""``graphprune apply``."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from graphprune.checkpoint import load_model
from graphprune.cli.models import graph_of
from graphprune.masking import masked
from graphprune.plan import PrunePlan

TOKENS = torch.arange(1, 14)[None]


def halves(graph):
    """A plan that removes every other unit of every prunable attention group and channel."""
    groups = graph.select(role=["attention.group", "mlp.channel"])
    return PrunePlan.remove(graph, {g.name: range(0, g.size, 2) for g in groups})


def test_the_written_model_gives_the_masked_outputs(run, tiny, tmp_path):
    plan = halves(graph_of(str(tiny)))
    plan.save(tmp_path / "plan.json")
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small", "--no-prove")
    assert result.exit_code == 0, result.output
    assert "load it with:\n    model = " in result.stdout
    model = AutoModelForCausalLM.from_pretrained(tiny)
    small, _ = load_model(tmp_path / "small")
    assert f"{model.num_parameters():,} -> {small.num_parameters():,} parameters" in result.stdout
    with torch.no_grad(), masked(model, plan):
        expected = model(TOKENS).logits
    torch.testing.assert_close(small(TOKENS).logits, expected, rtol=0, atol=1e-5)


def test_a_pruned_folder_can_be_traced_and_pruned_again(run, tiny, tmp_path):
    groups = graph_of(str(tiny)).select(role="mlp.channel", layers=0)
    plan = PrunePlan.remove(graph_of(str(tiny)), {groups.names[0]: range(10)})  # layers now differ: no stock config
    plan.save(tmp_path / "plan.json")
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small", "--no-prove")
    assert "note: not a stock checkpoint, because " in result.stdout
    graph = graph_of(str(tmp_path / "small"))
    assert graph.by_name[groups.names[0]].size == 30
    halves(graph).save(tmp_path / "plan2.json")
    result = run("apply", tmp_path / "small", tmp_path / "plan2.json", "--out", tmp_path / "smaller", "--no-prove")
    assert result.exit_code == 0, result.output
    assert graph_of(str(tmp_path / "smaller")).by_name[groups.names[0]].size == 15


def test_a_plan_for_another_model_is_refused_and_nothing_written(refused, tiny, tmp_path):
    plan = halves(graph_of(str(tiny)))
    plan.model_copy(update={"fingerprint": "0" * 16}).save(tmp_path / "plan.json")
    told = refused("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small")
    assert f"fingerprint {'0' * 16}, this model has {plan.fingerprint}" in told
    assert not (tmp_path / "small").exists()


def test_a_folder_with_something_in_it_is_refused_before_anything_is_loaded(refused, tmp_path):
    PrunePlan(fingerprint="", sizes={}, removed={}).save(tmp_path / "plan.json")
    told = refused("apply", "no/such/model", tmp_path / "plan.json", "--out", tmp_path)
    assert "is not empty" in told
    assert "loading" not in told


def test_progress_is_told_once_where_there_is_no_terminal(run, tiny, tmp_path):
    halves(graph_of(str(tiny))).save(tmp_path / "plan.json")
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small", "--no-prove")
    assert result.stderr.count(f"writing {tmp_path / 'small'}") == 1
    assert "not proved" in result.stdout
    assert "proving" not in result.stderr


@pytest.mark.slow
def test_the_folder_is_proved_and_how_is_said(run, tiny, tmp_path):
    halves(graph_of(str(tiny))).save(tmp_path / "plan.json")
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "computes what the model cut in memory does; logits differ by at most" in told
    assert "8 greedy tokens are the same" in told
    assert result.stderr.count(f"proving {tmp_path / 'small'}") == 1


def test_an_adapter_is_merged_before_cutting(run, tiny, tmp_path):
    plan = halves(graph_of(str(tiny)))
    plan.save(tmp_path / "plan.json")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    options = peft.LoraConfig(r=2, target_modules=["v_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, options).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    options = ["--adapter", tmp_path / "adapter", "--no-prove"]
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small", *options)
    assert result.exit_code == 0, result.output
    merged = wrapped.merge_and_unload()
    with torch.no_grad(), masked(merged, plan):
        expected = merged(TOKENS).logits
    small, _ = load_model(tmp_path / "small")
    torch.testing.assert_close(small(TOKENS).logits, expected, rtol=0, atol=1e-5)


def test_an_adapter_for_another_base_is_refused(refused, tiny, tmp_path):
    halves(graph_of(str(tiny))).save(tmp_path / "plan.json")
    other = AutoModelForCausalLM.from_pretrained(tiny)
    other.model.layers[1].self_attn.v_proj = torch.nn.Linear(48, 30, bias=False)
    peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=["v_proj"])).save_pretrained(tmp_path / "adapter")
    told = refused(
        "apply", tiny, tmp_path / "plan.json", "--adapter", tmp_path / "adapter", "--out", tmp_path / "small"
    )
    assert "does not fit this model" in told
    assert "size mismatch" in told
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_that_leaves_the_folder_is_refused(refused, tiny, tmp_path, name):
    halves(graph_of(str(tiny))).save(tmp_path / "plan.json")
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "config.json").write_text((tiny / "config.json").read_text())
    (hostile / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    told = refused("apply", hostile, tmp_path / "plan.json", "--out", tmp_path / "small")
    assert f"names of safetensors files inside of the folder, got '{name}'" in told


def test_tokenizer_and_templates_are_copied_as_they_are(run, tiny, tmp_path):
    halves(graph_of(str(tiny))).save(tmp_path / "plan.json")
    (tmp_path / "model").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json"):
        (tmp_path / "model" / name).write_text(f"{name} with  odd spacing")
    result = run("apply", tmp_path / "model", tmp_path / "plan.json", "--out", tmp_path / "small", "--no-prove")
    assert result.exit_code == 0, result.output
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json"):
        assert (tmp_path / "small" / name).read_text() == f"{name} with  odd spacing"
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert json.loads((tmp_path / "small" / "generation_config.json").read_text()) == generation


def test_a_file_that_is_no_plan_is_refused(refused, tiny, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    assert "is not a prune plan" in refused("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small")
    assert "no plan file at" in refused("apply", tiny, tmp_path / "nowhere.json", "--out", tmp_path / "small")
