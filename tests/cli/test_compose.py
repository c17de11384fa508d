"""``graphprune compose``."""

from safetensors.torch import load_file

from graphprune.checkpoint.manifest import Manifest
from graphprune.cli.models import graph_of
from graphprune.plan import PrunePlan


def steps(run, tiny, tmp_path):
    """Layers, then channels, then layers: three folders and their plans."""
    model = tiny
    for number, units in enumerate([{"layer": [1]}, {"mlp.channel": range(0, 40, 2)}, {"layer": [0]}]):
        graph = graph_of(str(model))
        removed = {g.name: which for role, which in units.items() for g in graph.select(role=role)}
        PrunePlan.remove(graph, removed).save(tmp_path / f"plan{number}.json")
        result = run("apply", model, tmp_path / f"plan{number}.json", "--out", tmp_path / f"{number}", "--no-prove")
        assert result.exit_code == 0, result.output
        model = tmp_path / f"{number}"
    return model


def test_the_original_cut_once_is_the_model_cut_in_steps(run, tiny, tmp_path):
    last = steps(run, tiny, tmp_path)
    plans = [tmp_path / f"plan{number}.json" for number in range(3)]
    result = run("compose", tiny, *plans, "--out", tmp_path / "whole.json")
    assert result.exit_code == 0, result.output
    assert f"graphprune apply {tiny} {tmp_path / 'whole.json'}" in result.stdout
    assert run("apply", tiny, tmp_path / "whole.json", "--out", tmp_path / "once", "--no-prove").exit_code == 0
    once, stepwise = load_file(tmp_path / "once" / "model.safetensors"), load_file(last / "model.safetensors")
    assert once.keys() == stepwise.keys()
    assert all((once[name] == stepwise[name]).all() for name in once)
    assert len(Manifest.read(tmp_path / "once").steps) == 1


def test_a_pruned_folder_stands_for_its_plans(run, tiny, tmp_path):
    last = steps(run, tiny, tmp_path)
    assert len(Manifest.read(last).steps) > 1
    assert run("compose", tiny, last, "--out", tmp_path / "whole.json").exit_code == 0
    plans = [tmp_path / f"plan{number}.json" for number in range(3)]
    assert run("compose", tiny, *plans, "--out", tmp_path / "other.json").exit_code == 0
    assert PrunePlan.load(tmp_path / "whole.json") == PrunePlan.load(tmp_path / "other.json")


def test_plans_in_another_order_are_refused(refused, run, tiny, tmp_path):
    steps(run, tiny, tmp_path)
    told = refused("compose", tiny, tmp_path / "plan1.json", tmp_path / "plan0.json", "--out", tmp_path / "whole.json")
    assert "plan 1 of 2 is not one for the model" in told
    assert not (tmp_path / "whole.json").exists()


def test_a_file_is_not_overwritten_unasked(refused, run, tiny, tmp_path):
    (tmp_path / "whole.json").write_text("mine")
    steps(run, tiny, tmp_path)
    told = refused("compose", tiny, tmp_path / "plan0.json", "--out", tmp_path / "whole.json")
    assert "whole.json" in told
    assert (tmp_path / "whole.json").read_text() == "mine"
    assert run("compose", tiny, tmp_path / "plan0.json", "--out", tmp_path / "whole.json", "--force").exit_code == 0
