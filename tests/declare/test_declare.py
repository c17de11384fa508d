"""Groups declared by hand: what they add to a graph, that the law holds for them, and what is refused."""

import copy

import pytest
import torch

import graphprune as gp
from graphprune.declare import trace_with
from graphprune.errors import PlanError, SpecError
from tests.declare.models import Decoder, Experts, Fused, Listed, Opaque, Plain, decoder, ids
from tests.declare.specs import CHANNELS, EXPERTS, FUSED, HEADS, LISTED, LISTED_CHANNELS, spec


def declared(model, *groups):
    return gp.declare(gp.trace(model), spec(*groups), model)


def difference(model, graph, removed):
    """Largest difference of masked and reshaped outputs, and that of masked and dense ones."""
    plan = gp.PrunePlan.remove(graph, removed)
    small = gp.reshape(copy.deepcopy(model), plan, graph)
    with torch.no_grad(), gp.masked(model, plan, graph):
        masked = model(ids())
    with torch.no_grad():
        return (small(ids()) - masked).abs().max().item(), (model(ids()) - masked).abs().max().item()


@pytest.mark.parametrize(
    ("parts", "groups", "role", "size"),
    [
        ((Opaque, Plain), [HEADS], "attention.group", 6),
        ((Fused, Plain), [FUSED], "attention.group", 6),
        ((Opaque, Experts), [EXPERTS], "moe.expert", 5),
        ((Opaque, Experts), [CHANNELS], "moe.channel", 8),
        ((Opaque, Listed), [LISTED], "moe.expert", 5),
        ((Opaque, Listed), [LISTED_CHANNELS], "moe.channel", 10),
        ((Fused, Experts), [EXPERTS, FUSED, CHANNELS], "moe.channel", 8),
    ],
)
def test_masked_equals_reshaped(parts, groups, role, size):
    model = decoder(*parts)
    graph = declared(model, *groups)
    found = graph.select(role=role)
    assert [(g.layer, g.size, g.declared, g.exact) for g in found] == [(i, size, True, True) for i in range(3)]
    for removed in ({found.names[1]: [0, size - 1]}, {name: [i, i + 2] for i, name in enumerate(found.names)}):
        apart, effect = difference(model, graph, removed)
        assert apart < 1e-5 < 1e-2 < effect


@pytest.mark.parametrize(
    ("parts", "groups"),
    [((Opaque, Listed), [HEADS, LISTED, LISTED_CHANNELS]), ((Fused, Experts), [FUSED, EXPERTS, CHANNELS])],
)
def test_no_gradient_reaches_what_is_masked(parts, groups):
    """The other proof, without cutting anything: outputs do not depend on any slice that is going to be removed."""
    model = decoder(*parts)
    graph = declared(model, *groups)
    for group in (g for g in graph.select() if g.declared):
        plan = gp.PrunePlan.remove(graph, {group.name: [1, group.size - 1]})
        model.zero_grad()
        with gp.masked(model, plan, graph):
            model(ids()).square().sum().backward()
        reached = False
        for member in group.members:
            gradient = model.get_parameter(member.tensor).grad
            if gradient is None:  # an expert that no token was sent to
                continue
            along = gradient.movedim(member.dim, 0).reshape(member.length, -1).abs().sum(1)
            owner = member.unit_of()
            assert not along[(owner == 1) | (owner == group.size - 1)].any(), member.tensor
            reached = reached or bool(along.any())
        assert reached


def test_declared_groups_of_all_kinds_go_together():
    model = decoder(Fused, Experts)
    graph = declared(model, EXPERTS, FUSED, CHANNELS)
    removed = {g.name: range(1, g.size, 3) for g in graph.select() if g.declared}
    assert len(removed) == 9
    apart, effect = difference(model, graph, removed)
    assert apart < 1e-5 < 1e-2 < effect


def test_more_can_be_tied_to_a_group_that_was_traced_whole():
    """Expert 0 ran, so its channels can be pruned as they are; declared, they go with those of the other experts."""
    model = decoder(Opaque, Listed)
    assert gp.trace(model).by_name["blocks.0.ffn.experts.0/mlp.channel"].frozen is None
    graph = declared(model, LISTED_CHANNELS, LISTED)
    assert "blocks.0.ffn.experts.0/mlp.channel" not in graph.by_name
    names = {g.role: g.name for g in graph.select(layers=1)}
    apart, effect = difference(model, graph, {names["moe.channel"]: [1, 5], names["moe.expert"]: [0, 2]})
    assert apart < 1e-5 < 1e-2 < effect


def test_what_joined_is_counted_in_declared_units():
    model = decoder()
    graph = declared(model, HEADS)
    group = graph.by_name["blocks.0.attention/attention.group"]
    cut = {(m.tensor.removeprefix("blocks.0.attention."), m.dim): m.indices(1).tolist() for m in group.members}
    rows = {f"{name}.{leaf}": 0 for name in ("query", "key", "value") for leaf in ("weight", "bias")}
    assert cut == {(name, dim): [4, 5, 6, 7] for name, dim in {**rows, "back.weight": 1}.items()}
    assert [(s.kind, s.module) for s in group.sites] == [("input", "blocks.0.attention.back")]
    (rule,) = [r for r in graph.rules if r.owner == "blocks.0.attention"]
    assert (rule.attribute, rule.constant, rule.terms) == ("n_heads", 0, ((1, (group.name,)),))
    lifted = "'blocks.0.attention/attention.group' is declared by hand, which lifts: no rule for the operation 'attend'"
    assert any(note.startswith(lifted) for note in graph.notes)
    assert not {m.tensor for g in graph.select(frozen=True) for m in g.members if m.dim == 0} & set(dict(rows))


def test_neither_graph_nor_model_is_changed_and_nothing_is_declared_twice():
    model = decoder()
    graph = gp.trace(model)
    before = graph.model_dump_json(), {n: p.clone() for n, p in model.named_parameters()}
    after = gp.declare(graph, spec(HEADS), model)
    assert graph.model_dump_json() == before[0]
    assert all(torch.equal(p, before[1][n]) for n, p in model.named_parameters())
    assert after.fingerprint != graph.fingerprint
    assert gp.declare(after, spec(HEADS), model) is after
    assert gp.DependencyGraph.model_validate_json(after.model_dump_json()) == after
    with torch.device("meta"):
        empty = Decoder(Opaque, Plain)
    assert trace_with(empty, spec(HEADS)) == after


def test_the_guard_of_routed_experts_holds_unless_a_declaration_completes_it():
    graph = gp.trace(decoder(Opaque, Experts))
    assert {g.frozen for g in graph.select(role="moe.expert", frozen=True)} == {
        "only the router's rows were traced; the experts behind it were reached through Python integers"
    }


def test_half_a_declaration_does_not_pass_the_law():
    """The law notices what no check of shapes can: the second matrix of every expert is left out, and they shift."""
    model = decoder(Opaque, Experts)
    half = {**EXPERTS, "members": EXPERTS["members"][:1], "sizes": {}}
    graph = declared(model, half)
    with pytest.raises(RuntimeError, match="shape"):
        difference(model, graph, {graph.select(role="moe.expert").names[0]: [0]})


def test_a_declaration_for_some_layers_leaves_the_others_frozen():
    model = decoder()
    graph = declared(model, {**HEADS, "layers": "1:"})
    assert [g.layer for g in graph.select(role="attention.group")] == [1, 2]
    assert graph.select(frozen=True, layers=0)


def test_a_spec_is_followed_from_score_to_reshape():
    model = decoder(Fused, Experts)
    wanted = spec(EXPERTS, FUSED, role=["moe.expert", "attention.group"], ratio=0.4)
    graph = trace_with(model, wanted)
    plan = gp.plan(graph, wanted, gp.score(model, graph, wanted))
    assert {len(units) for units in plan.removed.values()} == {2}
    assert len(plan.removed) == 6
    with torch.no_grad(), gp.masked(model, plan):  # the graph is made again, from what the plan remembers
        masked = model(ids())
    small = gp.reshape(copy.deepcopy(model), plan)
    with torch.no_grad():
        assert torch.allclose(small(ids()), masked, atol=1e-5)
    assert small.blocks[1]["attention"].heads == 4
    assert small.blocks[1]["ffn"].number == 3
    assert small.blocks[1]["ffn"].up.shape == (24, 12)


def test_a_plan_remembers_what_was_declared(tmp_path):
    model = decoder()
    graph = declared(model, HEADS)
    plan = gp.PrunePlan.remove(graph, {graph.select(role="attention.group").names[0]: [2]})
    plan.save(tmp_path / "plan.json")
    assert gp.PrunePlan.load(tmp_path / "plan.json").declared == spec(HEADS).groups
    with pytest.raises(PlanError, match=r"1 declaration by hand, this one has 0\. Add them with gp\.declare"):
        gp.reshape(model, plan, gp.trace(model))


def test_scores_and_plans_want_the_graph_of_the_spec():
    model = decoder()
    expected = r"groups\[0\]: expected a graph with this declared group; add it with gp.declare\(graph, spec, model\)"
    with pytest.raises(SpecError, match=expected):
        gp.score(model, gp.trace(model), spec(HEADS, role="attention.group"))
