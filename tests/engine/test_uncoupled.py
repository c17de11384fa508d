"""Without dependencies every module loses its own units; sizes are those of proper pruning."""

import copy

import pytest
import torch
from pydantic import ValidationError

import graphprune as gp
from graphprune.engine.uncoupled import choose_apart, places, structures
from graphprune.errors import SpecError
from graphprune.graph import Axis, Block
from graphprune.schema import PruneSpec
from tests.decoders import tiny
from tests.engine.runs import make_spec

CHANNELS = [{"role": "mlp.channel", "ratio": 0.25}]


def uncoupled(criterion="magnitude", targets=CHANNELS, **training):
    return PruneSpec.model_validate(
        make_spec(mode="none", targets=targets, coupled=False, training=training) | {"criterion": criterion}
    )


def lowest(values, count):
    return sorted(values.sort(stable=True).indices[:count].tolist())


def test_every_matrix_of_an_mlp_keeps_the_channels_that_are_largest_in_it_alone():
    model = tiny("llama")
    graph = gp.trace(model)
    mlp = copy.deepcopy(model.model.layers[0].mlp)
    size = mlp.gate_proj.weight.shape[0]
    plan, _ = choose_apart(model, graph, uncoupled())
    small = gp.reshape(model, plan, graph).model.layers[0].mlp

    def kept(weight, dim):
        gone = lowest(weight.abs().sum(dim=1 - dim), size // 4)
        return weight.index_select(dim, torch.tensor([u for u in range(size) if u not in gone]))

    assert torch.equal(small.gate_proj.weight, kept(mlp.gate_proj.weight, 0))
    assert torch.equal(small.up_proj.weight, kept(mlp.up_proj.weight, 0))
    assert torch.equal(small.down_proj.weight, kept(mlp.down_proj.weight, 1))


def test_heads_go_whole_and_kv_heads_with_as_many_indices_as_they_have():
    model = tiny("llama")
    graph = gp.trace(model)
    targets = [{"role": "attention.group", "count": 1}]
    before = copy.deepcopy(model.model.layers[1].self_attn)
    plan, _ = choose_apart(model, graph, uncoupled(targets=targets))
    small = gp.reshape(model, plan, graph).model.layers[1].self_attn
    groups = next(g for g in graph.groups if g.role == "attention.group" and g.layer == 1).size
    for name, dim in (("q_proj", 0), ("k_proj", 0), ("o_proj", 1)):
        weight = getattr(before, name).weight
        heads = weight.unflatten(dim, (groups, -1))
        rest = [d for d in range(3) if d != dim]
        gone = lowest(heads.abs().sum(dim=rest), 1)
        keep = torch.tensor([u for u in range(groups) if u not in gone])
        assert torch.equal(getattr(small, name).weight, heads.index_select(dim, keep).flatten(dim, dim + 1))


@pytest.mark.parametrize("criterion", ["taylor", "lora", "wanda", {"name": "taylor", "mean_of": "sample"}])
def test_sizes_are_those_with_dependencies_and_the_model_runs(criterion, tokens):
    model = tiny("llama")
    graph = gp.trace(model)
    batches = [{"input_ids": tokens[:2]}, {"input_ids": tokens[2:4]}]
    plan, scores = choose_apart(model, graph, uncoupled(criterion), batches)
    coupled = gp.plan(graph, uncoupled(criterion), scores)
    assert {n: len(u) for n, u in plan.removed.items()} == {n: len(u) for n, u in coupled.removed.items()}
    small = gp.reshape(model, plan, graph)
    assert small(tokens[:1]).logits.isfinite().all()


def test_a_module_apart_is_scored_by_its_own_members():
    """Against the criterion asked directly about each matrix: wanda's score of one tensor reads no other."""
    model = tiny("llama")
    group = next(g for g in gp.trace(model).groups if g.role == "mlp.channel")
    assert [[m.tensor.split(".")[-2] for m in part] for part in structures(group)] == [
        ["gate_proj"],
        ["up_proj"],
        ["down_proj"],
    ]


def test_a_weight_and_its_bias_are_not_apart():
    group = next(g for g in gp.trace(tiny("qwen2")).groups if g.role == "attention.group")
    parts = {part[0].tensor.split(".")[-2]: [m.tensor.split(".")[-1] for m in part] for part in structures(group)}
    assert parts == {"q_proj": ["weight", "bias"], "k_proj": ["weight", "bias"], "v_proj": ["weight", "bias"]} | {
        "o_proj": ["weight"]
    }


def test_places_move_own_units_to_the_removed_ones_and_keep_the_order_of_the_rest():
    axis = Axis(size=4, length=8, blocks=(Block(start=0, unit_stride=2, loops=((2, 1),)),))
    order = places(axis, removed=[0], own=[2])
    assert order.tolist() == [4, 5, 0, 1, 2, 3, 6, 7]
    assert places(axis, [1, 3], [1, 3]).tolist() == list(range(8))


def test_a_run_measures_it_and_says_so(tokens, tmp_path):
    rows = tokens.tolist()
    spec = uncoupled("taylor").model_dump()
    result = gp.prune(tiny("llama"), spec, train_data=rows, evaluation=rows[:4], progress=False)
    assert result.report.perplexity_pruned is not None
    assert any("coupled: false" in note for note in result.report.notes)
    with pytest.raises(SpecError, match="neither written nor continued"):
        gp.prune(tiny("llama"), spec, train_data=rows, output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_tuning_recovers_a_model_pruned_so(tokens):
    spec = PruneSpec.model_validate(make_spec(mode="separate", targets=CHANNELS, coupled=False))
    result = gp.prune(tiny("llama"), spec, train_data=tokens.tolist(), evaluation=tokens[:4].tolist(), progress=False)
    assert result.report.perplexity_tuned < result.report.perplexity_pruned


def test_what_cannot_be_told_apart_is_refused(tokens):
    model = tiny("llama")
    graph = gp.trace(model)
    batches = [{"input_ids": tokens[:2]}]
    with pytest.raises(SpecError, match=r"'gate' judges whole units.*such as taylor"):
        choose_apart(model, graph, uncoupled("gate"), batches)
    with pytest.raises(SpecError, match="whole modules"):
        choose_apart(model, graph, uncoupled("magnitude", [{"role": "layer", "count": 1}]))


@pytest.mark.parametrize(
    ("mode", "more", "named"),
    [
        ("joint", {}, "training.mode: joint"),
        ("none", {"training": {"rounds": 2}}, "training.rounds"),
        ("separate", {"quantization": "nf4"}, "quantization"),
    ],
)
def test_it_is_for_one_shot_pruning_in_full_precision(mode, more, named):
    with pytest.raises(ValidationError, match=f"coupled: false.*{named}"):
        PruneSpec.model_validate(make_spec(mode=mode, coupled=False, **more))
