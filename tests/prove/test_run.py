"""``gp.prove``: what holds is proved, and what is broken on purpose is found."""

from __future__ import annotations

import pytest
import torch

import graphprune as gp
from graphprune.graph import Block
from tests.decoders import tiny, tokens

LAYER = "model.layers.1.mlp/mlp.channel"


def changed(graph, name, **update):
    """The graph with one group changed."""
    groups = tuple(g.model_copy(update=update) if g.name == name else g for g in graph.groups)
    return graph.model_copy(update={"groups": groups})


def shifted(member):
    """The member one unit further on: the slice of the wrong unit."""
    blocks = tuple(
        Block(start=b.start + b.unit_stride * (member.size - 1), unit_stride=-b.unit_stride, loops=b.loops)
        for b in member.blocks
    )
    return member.model_copy(update={"blocks": blocks})


def row_of(proof, role):
    (row,) = [r for r in proof.rows if r.role == role and r.fate != "frozen"]
    return row


@pytest.mark.parametrize("name", ["llama", "bloom", "olmo2", "qwen3_moe"])
def test_a_decoder_is_proved_kind_by_kind(name):
    model = tiny(name)
    graph = gp.trace(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    proof = gp.prove(model, graph, generate=True)
    assert proof.ok, proof.problems
    proved = [r for r in proof.rows if r.fate != "frozen"]
    assert {r.role for r in proved} == {g.role for g in graph.groups if g.frozen is None} | {"together"}
    for row in proved:
        assert row.relative < 1e-5 and row.effect > 1e-3 and not row.alive and row.generates
    for row in set(proof.rows) - set(proved):
        assert row.reason and row.difference is None and row.ok
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_saved_and_loaded_copies_are_proved_with_their_tier():
    proof = gp.prove(tiny("gpt_neox"), generate=True, reload=True)
    assert proof.ok, proof.problems
    assert row_of(proof, "mlp.channel").tier == "hf" and row_of(proof, "mlp.channel").reloads
    assert row_of(proof, "attention.group").tier == "hf-remote-code" and row_of(proof, "attention.group").reloads


def test_copies_of_single_roles_are_saved_and_loaded():
    proof = gp.prove(tiny("gpt_neox"), reload=("layer",))
    assert proof.ok, proof.problems
    assert [r.role for r in proof.rows if r.reloads is not None] == ["layer"]


def test_a_folder_that_is_no_stock_checkpoint_says_why():
    row = row_of(gp.prove(tiny("gpt_neox"), roles="attention.group", reload=True), "attention.group")
    assert row.tier == "hf-remote-code" and any(note.startswith("not a stock checkpoint: ") for note in row.notes)


def test_the_slice_of_another_unit_is_found_by_both_oracles():
    model = tiny("llama")
    graph = gp.trace(model)
    first, *rest = graph.by_name[LAYER].members
    row = row_of(gp.prove(model, changed(graph, LAYER, members=(shifted(first), *rest))), "mlp.channel")
    assert "masked and reshaped differ" in row.problem
    assert row.alive == (f"{first.tensor} (dimension {first.dim})",)
    assert "1 removed slice has a gradient under the mask" in row.problem


def test_slices_of_another_unit_throughout_are_found():
    """All members agree with each other, so the cut is consistent: it is only the wrong unit that goes."""
    model = tiny("llama")
    graph = gp.trace(model)
    members = tuple(shifted(m) for m in graph.by_name[LAYER].members)
    row = row_of(gp.prove(model, changed(graph, LAYER, members=members)), "mlp.channel")
    assert "masked and reshaped differ" in row.problem and len(row.alive) == len(members)


@pytest.mark.parametrize("missing", range(3))
def test_a_missing_member_is_found_and_hides_no_other_kind(missing):
    model = tiny("llama")
    graph = gp.trace(model)
    members = graph.by_name[LAYER].members
    proof = gp.prove(model, changed(graph, LAYER, members=members[:missing] + members[missing + 1 :]))
    assert not proof.ok
    assert "Error" in row_of(proof, "mlp.channel").problem
    assert row_of(proof, "attention.group").ok
    assert any(problem.startswith("mlp.channel: ") for problem in proof.problems)


def test_a_mask_that_silences_only_a_part_is_found():
    model = tiny("gemma2")
    graph = gp.trace(model)
    (group, *_) = graph.select(role="attention.group")
    (site,) = group.sites
    axis = site.axis.model_copy(update={"blocks": (site.axis.blocks[0].model_copy(update={"loops": ()}),)})
    row = row_of(
        gp.prove(model, changed(graph, group.name, sites=(site.model_copy(update={"axis": axis}),))), "attention.group"
    )
    assert row.alive and "gradient under the mask" in row.problem


def test_a_mask_that_changes_nothing_proves_nothing():
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
    row = row_of(gp.prove(model), "mlp.channel")
    assert row.problem == "vacuous: the mask changes no logit by more than 0" and row.difference == 0


def test_what_is_inexact_may_differ_and_says_by_how_much():
    model = tiny("llama")
    graph = gp.trace(model)
    members = tuple(shifted(m) for m in graph.by_name[LAYER].members)
    wrong = changed(graph, LAYER, members=members, exact=False, inexact_reason="on purpose")
    (row,) = [r for r in gp.prove(model, wrong).rows if r.fate == "inexact"]
    assert row.ok and row.reason == "on purpose" and row.relative > 1e-3 and row.alive


def test_short_floats_are_proved_in_float32():
    model = tiny("llama").bfloat16()
    proof = gp.prove(model)
    assert proof.ok and row_of(proof, "attention.group").relative < 1e-5
    assert model.dtype == torch.bfloat16


def test_given_inputs_are_used_and_training_mode_comes_back():
    model = tiny("llama").train()
    proof = gp.prove(model, inputs={"input_ids": tokens(batch=1, length=5)}, generate=True, seed=3)
    assert proof.ok and proof.seed == 3 and all(m.training for m in model.modules())


def test_a_proof_is_a_value_that_prints_and_reloads():
    proof = gp.prove(tiny("gpt2"))
    assert gp.Proof.model_validate_json(proof.model_dump_json()) == proof
    assert str(proof).startswith("proved\n") and "mlp.channel (3 groups, 120 units): exact" in str(proof)
