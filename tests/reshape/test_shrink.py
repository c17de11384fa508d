"""The graph of a smaller model by arithmetic is the one that tracing it finds."""

import pytest
import torch

from graphprune.errors import GraphError, PlanError, TraceError
from graphprune.plan import PrunePlan
from graphprune.prove import prove
from graphprune.prove.plans import together
from graphprune.prove.subject import twin
from graphprune.reshape.apply import cut_model
from graphprune.reshape.history import compose
from graphprune.reshape.shrink import left_of, shrunk
from graphprune.testing import cases, tiny_model
from graphprune.testing.models import example_inputs
from graphprune.trace import trace

FEW = ("llama", "phi3", "gpt_neox", "olmo2", "mixtral", "deepseek_v3", "mamba2")
REASONS = {
    "hrm_text": "which of several stacks is the main one depends on their sizes",
    "musicgen": "with as many layers left as there are codebooks, lists of both look alike",
    "musicgen_melody": "with as many layers left as there are codebooks, lists of both look alike",
    "blt": "a role is told from how many units there are",
    "zaya": "tracing it takes minutes",
    "minimax_m3_vl_text": "the cut model does not run in the first place",
}
"""Cases in which tracing the cut model finds another graph, or none."""
COARSER = {
    "hy_v4": "fewer layers have to stay once others are gone",
    "gemma4_text@shared": "heads of layers that shared keys and values are told apart once some of these are gone",
    "gemma4_text@wide": "heads of layers that shared keys and values are told apart once some of these are gone",
    "zamba": "norms of the width are told by their scale once a block is no longer shared",
}
"""Cases in which tracing finds more freedom once layers are gone; what arithmetic says is right all the same."""
DEPENDENT = {
    "gemma3n_text": "counts its calls of mean over all layers",
    "zamba2": "which goes with its layer",
}
"""Cases in which layers depend on others, so that there is no arithmetic once these are gone."""
CASES = [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in cases() if case not in REASONS]


def trace_case(model):
    try:
        return trace(model)
    except TraceError:
        return trace(model, example_inputs=example_inputs(model))


def lies(axis):
    return axis.length, tuple(axis.unit_of().tolist())


def told(graph):
    """Everything that cutting and masking look at, of groups that can be pruned still, by value."""
    sizes = graph.sizes()
    groups = {
        g.name: (
            g.role,
            g.layer,
            g.size,
            g.exact,
            g.minimum,
            {(m.tensor, m.dim, m.consumes, lies(m)) for m in g.members},
            {
                (s.kind, s.module, s.dim, s.function, s.call, s.argument, s.output, s.reader, lies(s.axis))
                for s in g.sites
            },
            {n.tensor for n in g.norms},
            {(s.path, s.size) for s in g.stacks},
        )
        for g in graph.groups
        if g.frozen is None and g.size > 1
    }
    constants = {(c.group, c.argument, c.dim, lies(c.axis)) for c in graph.constants if graph.by_name[c.group].size > 1}
    rules = {
        (r.owner, r.attribute, r.reader): r.value(sizes)
        for r in graph.rules
        if any(sizes[name] > 1 for _, names in r.terms for name in names)
    }
    return groups, constants, graph.shapes, graph.layers, rules


def plans(graph, seed=0):
    free = [g for g in graph.groups if g.frozen is None]
    generator = torch.Generator().manual_seed(seed)
    for groups in ([g for g in free if g.role != "layer"], free):
        yield from (trial.plan for trial in together(graph, groups, 0.4, generator))


def _vacuous(row):
    """Nothing could be compared: of a group of which only its minimum is left, say."""
    return (row.problem or "").startswith("vacuous")


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_tracing_the_smaller_model_finds(case):
    model = tiny_model(case)
    graph = trace_case(model)
    for plan in plans(graph):
        small = twin(model)
        cut_model(small, graph, plan)
        layers_go = any(graph.by_name[name].role == "layer" for name in plan.removed)
        if layers_go and case in DEPENDENT:
            with pytest.raises(GraphError, match=f"{DEPENDENT[case]}.*Trace it anew"):
                shrunk(graph, plan)
            continue
        if layers_go and case in COARSER:
            assert [row for row in prove(small, shrunk(graph, plan)).rows if not row.ok and not _vacuous(row)] == []
            continue
        *got, rules = told(shrunk(graph, plan))
        *expected, found = told(trace_case(small))
        assert got == expected
        # By accident a number may stand beside another one of the same value, in one model and not in the other.
        assert all(rules[place] == value for place, value in found.items() if place in rules)


@pytest.mark.parametrize("case", FEW)
def test_two_plans_in_a_row_are_one(case):
    graph = trace_case(tiny_model(case))
    first = next(plans(graph))
    small = shrunk(graph, first)
    second = next(plans(small, seed=1), None)
    if second is None:
        pytest.skip("nothing is left to prune")
    total = compose(first, second)
    assert left_of(graph, first, total) == (small, second)
    assert told(shrunk(small, second)) == told(shrunk(graph, total))


def test_what_is_left_where_layers_moved_up():
    graph = trace(tiny_model("llama"))
    layers = next(g for g in graph.groups if g.role == "layer")
    done = PrunePlan.remove(graph, {layers.name: [0], "model.layers.1.mlp/mlp.channel": [0, 2]})
    total = PrunePlan.remove(
        graph,
        {
            layers.name: [0],
            "model.layers.0.mlp/mlp.channel": [1],
            "model.layers.1.mlp/mlp.channel": [0, 1, 2, 5],
        },
    )
    small, left = left_of(graph, done, total)
    assert small.layers == layers.size - 1
    assert small.by_name["model.layers.0.mlp/mlp.channel"].layer == 0
    assert left.removed == {"model.layers.0.mlp/mlp.channel": (0, 3)}


def test_a_model_whose_layers_share_weights_loses_the_first_of_them_by_tracing_alone():
    graph = trace(tiny_model("zamba2"))
    layers = next(g for g in graph.groups if g.role == "layer")
    shared = next(first for first in graph.tied.values())
    first = int(shared.split(".")[2])
    with pytest.raises(GraphError, match=rf"layers\.\d.* is 'model\.layers\.{first}\..*goes with its layer"):
        shrunk(graph, PrunePlan.remove(graph, {layers.name: [first]}))
    assert shrunk(graph, PrunePlan.remove(graph, {layers.name: [0]})).layers == layers.size - 1


def test_a_plan_for_another_graph_is_refused():
    graph = trace(tiny_model("llama"))
    other = trace(tiny_model("phi3"))
    with pytest.raises(PlanError, match="was made for a model with graph fingerprint"):
        shrunk(graph, PrunePlan.remove(other, {}))
