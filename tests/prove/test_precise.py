"""Where float32 rounding decides a choice, the proof asks again in float64, and a wrong cut is still found there."""

from __future__ import annotations

import copy

import torch
from torch import nn

import graphprune as gp
from graphprune.prove import precise
from graphprune.prove.subject import distance, logits_of
from tests.decoders import tiny, tokens
from tests.prove.test_run import LAYER, changed, row_of, shifted


class Chooser(nn.Linear):
    """A head that turns round where its input crosses the next of many thresholds."""

    def forward(self, x):
        return super().forward(torch.where((x * 2**24).floor() % 2 == 0, x, -x))


def choosing():
    model = tiny("llama")
    head = Chooser(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    return model


def test_a_choice_that_rounding_turns_is_compared_in_float64():
    row = row_of(gp.prove(choosing(), roles="mlp.channel", generate=True), "mlp.channel")
    assert row.ok and row.relative < 1e-10 and row.generates, row.problem
    assert any("compared in float64, because this model amplifies rounding" in note for note in row.notes)


def test_a_wrong_cut_stays_wrong_in_float64():
    model = choosing()
    graph = gp.trace(model)
    first, *rest = graph.by_name[LAYER].members
    wrong = changed(graph, LAYER, members=(shifted(first), *rest))
    row = row_of(gp.prove(model, wrong, roles="mlp.channel"), "mlp.channel")
    assert not row.ok and row.relative > 1e-3


@torch.no_grad()
def test_nothing_of_the_forward_is_rounded_to_float32():
    """The norms convert to float32 by themselves; the order of a sum must not show beyond float64."""
    for name in ("llama", "olmo2", "qwen3_moe"):
        model = precise.in_float64(tiny(name))
        other = copy.deepcopy(model)
        order = torch.randperm(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        other.lm_head.weight = nn.Parameter(other.lm_head.weight[:, order])
        other.lm_head.register_forward_pre_hook(lambda _, args, order=order: (args[0][..., order],))
        other.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: (args[0] * (1 + 1e-14),))  # below float32
        inputs = {"input_ids": tokens()}
        with precise.computing_in_float64(model), precise.computing_in_float64(other):
            apart = distance(logits_of(model, inputs), logits_of(other, inputs))
        assert apart < 1e-11
    assert torch.get_default_dtype() == torch.float32


def test_what_does_not_fit_is_not_copied(monkeypatch):
    monkeypatch.setattr(precise.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert precise.in_float64(tiny("llama")) is None


def test_floats_are_widened_and_indices_are_not():
    given = precise.widened({"x": torch.ones(2), "ids": torch.ones(2, dtype=torch.long), "use_cache": True})
    assert given["x"].dtype == torch.float64 and given["ids"].dtype == torch.long and given["use_cache"] is True
