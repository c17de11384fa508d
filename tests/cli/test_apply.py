"""``graphprune apply``."""

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
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small")
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
    result = run("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small")
    assert "note: not a stock checkpoint, because " in result.stdout
    graph = graph_of(str(tmp_path / "small"))
    assert graph.by_name[groups.names[0]].size == 30
    halves(graph).save(tmp_path / "plan2.json")
    assert run("apply", tmp_path / "small", tmp_path / "plan2.json", "--out", tmp_path / "smaller").exit_code == 0
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


def test_a_file_that_is_no_plan_is_refused(refused, tiny, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    assert "is not a prune plan" in refused("apply", tiny, tmp_path / "plan.json", "--out", tmp_path / "small")
    assert "no plan file at" in refused("apply", tiny, tmp_path / "nowhere.json", "--out", tmp_path / "small")
