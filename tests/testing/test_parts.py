"""What module names lead one to expect, held against the graph."""

from __future__ import annotations

import pytest

import graphprune as gp
from graphprune.testing import example_inputs, parts_of, tiny_model


def rows(case, change=lambda graph: graph):
    model = tiny_model(case)
    found = parts_of(model, change(gp.trace(model)), example_inputs(model))
    return {(r.part, r.role): r for r in found}


HEADS = "attention.group|attention.query"
CHANNELS = "mlp.channel|rank"
ONE_MLP = {("mlp", CHANNELS): 3}


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("llama", {("attention", HEADS): 3, ("mlp", CHANNELS): 3}),
        ("bert", {("attention", HEADS): 3, ("mlp", CHANNELS): 3}),
        ("opt", {("attention", HEADS): 3, ("mlp", "mlp.channel"): 3}),
        ("mamba2", {("mixer", "mixer.head|mixer.channel"): 3}),
        ("bart", {("attention", HEADS): 3, ("mlp", "mlp.channel"): 3}),  # its cross attention does not run
        (
            "minicpm3",
            {("latent attention", r): 3 for r in (HEADS, "mla.q_rank", "mla.kv_rank")} | ONE_MLP,
        ),
    ],
)
def test_parts_are_told_by_names_and_children(case, counts):
    found = {k: r for k, r in rows(case).items() if k[0] != "model"}
    assert {key: row.count for key, row in found.items()} == counts
    assert all(row.prunable == row.count and not row.missing for row in found.values())


def test_experts_are_not_an_mlp():
    found = rows("mixtral")
    assert ("mlp", CHANNELS) not in found
    assert found["experts", "moe.expert"].count == found["experts", "moe.channel"].prunable == 3


def test_a_group_that_is_not_there_is_missed():
    name = "model.layers.1.mlp/mlp.channel"
    found = rows("llama", lambda g: g.model_copy(update={"groups": tuple(x for x in g.groups if x.name != name)}))
    row = found["mlp", CHANNELS]
    assert (row.prunable, row.frozen, row.missing) == (2, 0, ("model.layers.1.mlp",))


def test_frozen_groups_are_told_with_their_reason():
    def freeze(graph):
        groups = tuple(
            g.model_copy(update={"frozen": "on purpose"}) if g.role == "mlp.channel" else g for g in graph.groups
        )
        return graph.model_copy(update={"groups": groups})

    row = rows("llama", freeze)["mlp", CHANNELS]
    assert (row.prunable, row.frozen, row.missing, row.reasons) == (0, 3, (), ("on purpose",))


def test_shared_blocks_count_wherever_they_stand():
    assert all(not row.missing for (part, _), row in rows("zamba2").items() if part in ("attention", "mlp"))


def test_the_model_has_a_residual_stream_and_layers():
    found = rows("gpt2")
    assert found["model", "hidden"].prunable == found["model", "layer"].prunable == 1
