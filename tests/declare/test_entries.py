"""Units that are whole modules: experts in a list, each with linear layers of its own."""

import copy

import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.declare import trace_with
from graphprune.errors import PlanError, SpecError
from tests.declare.models import HIDDEN, Listed, Opaque, Plain, decoder, ids
from tests.declare.specs import HEADS, LISTED, spec


def outputs(model):
    with torch.no_grad():
        return model(ids())


def removed_from(model, wanted, removed):
    graph = trace_with(model, wanted)
    plan = gp.PrunePlan.remove(graph, removed)
    with gp.masked(model, plan, graph):
        masked = outputs(model)
    return masked, gp.reshape(copy.deepcopy(model), plan, graph)


def test_an_expert_goes_with_its_row_in_the_router_and_later_ones_move_up():
    model = decoder(Opaque, Listed)
    masked, small = removed_from(model, spec(LISTED), {"blocks.1.ffn/moe.expert": [0, 3]})
    ffn, before = small.blocks[1]["ffn"], model.blocks[1]["ffn"]
    assert [e.number for e in ffn.experts] == [0, 1, 2]
    assert [n for n, _ in ffn.experts.named_children()] == ["0", "1", "2"]
    assert all(
        torch.equal(e.up.weight, before.experts[u].up.weight) for e, u in zip(ffn.experts, (1, 2, 4), strict=True)
    )
    assert torch.equal(ffn.gate.weight, before.gate.weight[[1, 2, 4]])
    assert len(small.blocks[0]["ffn"].experts) == 5
    assert torch.allclose(outputs(small), masked, atol=1e-5)
    assert (masked - outputs(model)).abs().max() > 1e-2


def test_an_expert_counts_with_all_that_it_has_to_itself():
    model = decoder(Opaque, Listed)
    graph = trace_with(model, spec(LISTED))
    group = graph.by_name["blocks.2.ffn/moe.expert"]
    assert {(m.tensor.removeprefix("blocks.2.ffn."), m.only) for m in group.members} == {
        ("gate.weight", None),
        *(
            (f"experts.{u}.{part}.{leaf}", u)
            for u in range(5)
            for part in ("up", "down")
            for leaf in ("weight", "bias")
        ),
    }
    assert group.minimum == Listed.per_token
    scores = gp.score(model, graph, spec(LISTED, role="moe.expert"))[group.name]
    ffn = model.blocks[2]["ffn"]
    direct = [
        sum(float(p.detach().double().abs().sum()) for p in ffn.experts[u].parameters())
        + float(ffn.gate.weight[u].detach().double().abs().sum())
        for u in range(5)
    ]
    assert scores.tolist() == pytest.approx(direct, rel=1e-5)


def test_no_fewer_experts_than_a_token_needs():
    graph = trace_with(decoder(Opaque, Listed), spec(LISTED))
    with pytest.raises(PlanError, match="below its minimum 2"):
        gp.PrunePlan.remove(graph, {"blocks.0.ffn/moe.expert": [0, 1, 2, 3]})


def test_from_a_spec_to_a_smaller_decoder_twice():
    """Heads under a name of its own and experts in lists, by magnitude; and again, with the same spec."""
    model = decoder(Opaque, Listed)
    heads = {k: v for k, v in HEADS.items() if k != "size"}
    for size, experts in ((6, 4), (5, 3)):
        wanted = spec({**heads, "size": size}, LISTED, role=["attention.group", "moe.expert"])
        graph = trace_with(model, wanted)
        plan = gp.plan(graph, wanted, gp.score(model, graph, wanted))
        assert {name.split("/")[1]: len(units) for name, units in plan.removed.items()} == {
            "attention.group": 1,
            "moe.expert": 1,
        }
        before = outputs(model)
        with gp.masked(model, plan, graph):
            masked = outputs(model)
        model = gp.reshape(model, plan, graph)
        assert torch.allclose(outputs(model), masked, atol=1e-5)
        assert (before - masked).abs().max() > 1e-3
        assert {block["attention"].n_heads for block in model.blocks} == {size - 1}
        assert {len(block["ffn"].experts) for block in model.blocks} == {experts}


def test_what_runs_through_experts_that_did_not_run_stays_frozen():
    graph = trace_with(decoder(Opaque, Listed), spec(LISTED))
    assert graph.by_name["hidden"].frozen == (
        "'blocks.0.ffn.experts.1' and 2 more did not run in the traced forward pass and may have this axis"
    )


def test_a_stream_can_be_completed_in_the_experts_that_did_not_run():
    model = decoder(Opaque, Listed)
    expert = "blocks.*.ffn.experts.*"
    stream = {
        "role": "hidden",
        "completes": "hidden",
        "members": [
            {"tensor": f"{expert}.up.weight", "dim": 1, "consumes": True},
            {"tensor": f"{expert}.down.weight"},
            {"tensor": f"{expert}.down.bias"},
        ],
    }
    masked, small = removed_from(model, spec(stream), {"hidden": [2, 7]})
    assert torch.allclose(outputs(small), masked, atol=1e-5)
    assert (masked - outputs(model)).abs().max() > 1e-2


class Branches(nn.Module):
    """Branches that all run and are added up; nothing chooses among them."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(Plain() for _ in range(4))

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


BRANCHES = {
    "role": "branch",
    "entries": "blocks.{layer}.ffn.branches",
    "mask": [{"weight": "blocks.{layer}.ffn.branches.{unit}.down.*"}],
}


def test_units_without_a_router_are_silenced_by_their_own_tensors():
    model = decoder(Opaque, Branches)
    masked, small = removed_from(model, spec(BRANCHES), {"blocks.0.ffn.branches/branch": [1, 2]})
    assert torch.allclose(outputs(small), masked, atol=1e-5)
    assert (masked - outputs(model)).abs().max() > 1e-2
    assert len(small.blocks[0]["ffn"].branches) == 2


def test_a_shared_tensor_stays():
    model = decoder(Opaque, Branches)
    branches = model.blocks[0]["ffn"].branches
    branches[2].up.weight = branches[1].up.weight
    graph = trace_with(model, spec(BRANCHES))
    group = graph.by_name["blocks.0.ffn.branches/branch"]
    assert not any(m.tensor.endswith("branches.1.up.weight") for m in group.members)
    masked, small = removed_from(model, spec(BRANCHES), {group.name: [1]})
    assert torch.allclose(outputs(small), masked, atol=1e-5)


class Sized(Branches):
    """Widths grow from branch to branch; they are no numbers of places."""

    def __init__(self):
        super().__init__()
        for index, branch in enumerate(self.branches):
            branch.width = 8 + 2 * index
            branch.up, branch.down = nn.Linear(HIDDEN, branch.width), nn.Linear(branch.width, HIDDEN)


def test_sizes_that_grow_are_not_renumbered():
    model = decoder(Opaque, Sized)
    _, small = removed_from(model, spec(BRANCHES), {"blocks.0.ffn.branches/branch": [0]})
    assert [b.width for b in small.blocks[0]["ffn"].branches] == [10, 12, 14]


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        (
            {**LISTED, "entries": "blocks.{layer}.ffn.gate"},
            "groups[0].members: expected names of tensors in some layer, but none matches 'blocks.{layer}.ffn.gate'",
        ),
        (
            {**LISTED, "entries": "blocks.{layer}.ffn.expert", "members": [{"tensor": "blocks.{layer}.norm.weight"}]},
            "groups[0].entries: the model has no module 'blocks.0.ffn.expert'",
        ),
        (
            {**LISTED, "entries": "blocks"},
            "groups[0].size: expected one number of units, got 7 (size) and 3 (entries of 'blocks')",
        ),
        ({**LISTED, "size": 6}, "groups[0].size: expected one number of units, got 6 (size) and 5 (entries of"),
    ],
)
def test_lists_that_are_none_or_do_not_fit_are_refused(group, problem):
    group = {**group, "size": 7} if group["entries"] == "blocks" else group
    model = decoder(Opaque, Listed)
    with pytest.raises(SpecError) as caught:
        trace_with(model, spec(group))
    assert any(p.startswith(problem) for p in caught.value.problems), caught.value
