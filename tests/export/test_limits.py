"""Limits that an export puts on any model, whatever its class."""

import torch

from graphprune.export.limits import asked_of, nearest, structural
from graphprune.ranking import plan
from graphprune.schema import PruneSpec
from graphprune.trace import trace
from graphprune.validate import resolve_targets
from tests.decoders import tiny


def graph_of(name, **changes):
    return trace(tiny(name, **changes))


def test_of_two_sizes_as_near_the_larger_is_kept():
    assert nearest(6, [4, 8]) == 8
    assert nearest(6, [5, 8]) == 5
    assert nearest(6, []) is None


def test_what_is_asked_for_is_what_ranking_would_do():
    graph = graph_of("mixtral", intermediate_size=64, num_local_experts=8)
    for role, amount in [("moe.channel", {"ratio": 0.3}), ("moe.expert", {"keep": 1}), ("layer", {"count": 1})]:
        spec = PruneSpec.model_validate({"targets": [{"role": role, **amount}]})
        made = plan(graph, spec, {g.name: torch.zeros(g.size) for g in graph})
        for group in graph.select(role=role):
            assert asked_of(group, spec.targets[0]) == made.sizes_after()[group.name]


def spec_for(role, export, **target):
    return PruneSpec.model_validate({"targets": [{"role": role, **target}], "export": export})


def test_limits_without_a_model():
    graph = graph_of("llama", intermediate_size=256)
    spec = spec_for("mlp.channel", {"multiple_of": 64}, keep=100)
    limits, problems = structural(spec, graph, resolve_targets(spec, graph))
    assert not problems
    assert set(limits.keep.values()) == {128}
    assert limits.notes == (
        "mlp.channel: 100 of 256 units asked for, 128 kept, because of export.multiple_of: 64 (in 3 groups)",
    )
    fine = spec_for("mlp.channel", {"multiple_of": 64}, keep=192)
    assert not structural(fine, graph, resolve_targets(fine, graph))[0]
    wide = spec.model_copy(update={"scope": "role"})
    assert set(structural(wide, graph, resolve_targets(wide, graph))[0].multiples.values()) == {64}


def test_what_cannot_be_had_at_all_is_a_problem():
    graph = graph_of("llama")
    spec = spec_for("mlp.channel", {"multiple_of": 64}, ratio=0.5)
    _, problems = structural(spec, graph, resolve_targets(spec, graph))
    assert problems == [
        (
            "targets[0]: no smaller size of a group of 40 mlp.channel units fits export.multiple_of: 64. "
            "Ask for less there, or leave these groups out."
        )
    ]
    nothing = spec_for("mlp.channel", {"multiple_of": 64}, ratio=0)
    assert structural(nothing, graph, resolve_targets(nothing, graph))[1] == []
