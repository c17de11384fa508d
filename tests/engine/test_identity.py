"""What a run belongs to, and how differences are told."""

import copy

import pytest
import torch

from graphprune.engine.adapters import attach
from graphprune.engine.identity import Identity, spec_differences, spec_fingerprint, spec_of_run, tuned_weights
from graphprune.schema import Lora, PruneSpec


def make_spec(**rest):
    return PruneSpec.model_validate({"targets": [{"role": "mlp.channel", "ratio": 0.5}], **rest})


def identity(model, graph, data="abc", **spec):
    return Identity.of_run(make_spec(**spec), graph, model, data)


def test_a_run_is_the_same_as_itself(llama, graph):
    assert identity(llama, graph).differences(identity(copy.deepcopy(llama), graph)) == []


def test_the_hash_of_a_spec_is_of_what_decides_the_result():
    written = spec_fingerprint(make_spec())
    assert len(written) == 64
    assert spec_fingerprint(make_spec(training={"save_every": 3}, data={"text": "elsewhere.txt"})) == written
    assert spec_fingerprint(make_spec(training={"steps": 3})) != written


def test_every_difference_of_a_spec_is_named_by_its_path():
    then = spec_of_run(make_spec())
    now = spec_of_run(make_spec(seed=1, training={"steps": 7}, criterion="magnitude"))
    told = spec_differences(then, now)
    assert "seed: expected 0, got 1" in told
    assert "training.steps: expected 200, got 7" in told
    assert "criterion.name: expected lora, got magnitude" in told
    assert all(": expected " in line and ", got " in line for line in told)
    two = spec_of_run(PruneSpec.model_validate({"targets": [{"role": "mlp.channel", "ratio": 0.5}] * 2}))
    assert spec_differences(then, two)[0].startswith("targets: expected [{")


@pytest.mark.parametrize(
    "spec",
    [
        {"training": {"save_every": 3, "logging_steps": 1}},
        {"data": {"text": "moved.txt", "evaluation": "other.txt"}},
    ],
)
def test_what_is_about_output_may_differ(spec):
    assert spec_differences(spec_of_run(make_spec()), spec_of_run(make_spec(**spec))) == []


@pytest.mark.parametrize("export", [{"merge_lora": False}, {"targets": "hf"}, {"multiple_of": 64}])
def test_another_export_is_another_result(export):
    assert spec_differences(spec_of_run(make_spec()), spec_of_run(make_spec(export=export)))


def test_model_graph_and_data_are_told_apart(llama, graph):
    then = identity(llama, graph)
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    assert then.differences(identity(other, graph)) == [
        "model: expected the same weights, got others. Is it the same checkpoint and revision?"
    ]
    assert then.differences(identity(other.bfloat16(), graph)) == [
        "model: expected the same names, shapes and number formats of its tensors, got others"
    ]
    assert then.differences(identity(llama.model, graph)) == [
        "model: expected a LlamaForCausalLM with 30 parameters, got a LlamaModel with 29 parameters"
    ]
    assert then.differences(identity(llama, graph, data=""))[0].startswith(
        "training data: expected the fingerprint abc, got nothing: "
    )
    fewer = graph.model_copy(update={"groups": graph.groups[1:]})
    told = then.differences(identity(llama, fewer))
    assert told == [f"dependency graph: expected the fingerprint {graph.fingerprint}, got {fewer.fingerprint}"]


def test_every_number_format_has_a_fingerprint(llama, graph):
    base = identity(llama, graph).weights
    llama.register_parameter("extra", torch.nn.Parameter(torch.ones(5, 3, dtype=torch.float8_e4m3fn), False))
    llama.register_parameter("packed", torch.nn.Parameter(torch.ones(6, 1, dtype=torch.uint8), False))
    llama.register_parameter("scalar", torch.nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16)))
    llama.register_parameter("nothing", torch.nn.Parameter(torch.empty(0, 3)))
    llama.register_parameter("absent", torch.nn.Parameter(torch.empty(4, device="meta")))
    whole = identity(llama, graph).weights
    assert whole != base
    with torch.no_grad():
        llama.scalar.fill_(3.0)
    assert identity(llama, graph).weights != whole


def test_what_training_changes_does_not_count_for_a_callback(llama, graph):
    def of(model):
        return Identity.of_training(make_spec(), 4, graph, model)

    model = attach(llama, graph, graph.select(role="mlp.channel"), Lora(r=2))
    then, tuned = of(model), tuned_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 if parameter.requires_grad else 0.0)
    assert then.differences(of(model)) == []
    assert tuned_weights(model) != tuned


def test_other_versions_are_told(llama, graph):
    now = identity(llama, graph)
    then = now.model_copy(update={"versions": {**now.versions, "torch": "1.0"}})
    assert then.differences(now) == []
    assert then.other_versions(now) == f"torch 1.0 is now {now.versions['torch']}"
    assert now.other_versions(now) == ""
