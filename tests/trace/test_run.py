"""What the tracer finds in real architectures."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from graphprune.errors import TraceError
from graphprune.graph import DependencyGraph
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.decoders import DECODERS, config, tiny, tokens

LAYERS = 3
ATTENTION = {  # role → units per layer
    "llama": {"attention.group": 4, "attention.query": 2},
    "gpt2": {"attention.group": 8},
    "gpt_neox": {"attention.group": 4},
    "opt": {"attention.group": 8},
    "bloom": {"attention.group": 8},
    "falcon-multi-query": {"attention.query": 8},
    "falcon-alibi": {"attention.group": 8},
}


@pytest.mark.parametrize("name", DECODERS)
def test_every_layer_has_its_heads_and_channels(name):
    graph = trace(tiny(name))
    assert graph.notes == () and graph.untraced == ()
    assert graph.layers == LAYERS
    for role, size in ATTENTION.get(name, ATTENTION["llama"]).items():
        groups = graph.select(role=role)
        assert [(g.layer, g.size) for g in groups] == [(i, size) for i in range(LAYERS)]
    channels = graph.select(role=["mlp.channel", "moe.channel"])
    width = {"qwen3_moe": 20, "bloom": 192}.get(name, 40)
    assert [(g.layer, g.size) for g in channels] == [(i, width) for i in range(LAYERS)]


def test_grouped_query_attention_takes_the_queries_of_a_key_head_along():
    graph = trace(tiny("llama"))
    group = graph.by_name["model.layers.1.self_attn/attention.group"]
    cut = {(m.tensor.split(".")[-2], m.dim): m.indices(1).tolist() for m in group.members}
    assert cut == {
        ("q_proj", 0): list(range(12, 24)),
        ("k_proj", 0): list(range(6, 12)),
        ("v_proj", 0): list(range(6, 12)),
        ("o_proj", 1): list(range(12, 24)),
    }
    assert [m.consumes for m in group.members] == [False, False, False, True]


def test_fused_projections_are_cut_in_all_their_parts():
    graph = trace(tiny("phi3"))
    by_tensor = {m.tensor.split(".")[-2]: m for m in graph.by_name["model.layers.0.mlp/mlp.channel"].members}
    assert by_tensor["gate_up_proj"].indices(3).tolist() == [3, 43]
    heads = graph.by_name["model.layers.0.self_attn/attention.group"].members
    fused = next(m for m in heads if "qkv" in m.tensor)
    assert fused.indices(1).tolist() == [*range(12, 24), *range(54, 60), *range(78, 84)]


def test_interleaved_fused_heads():
    graph = trace(tiny("gpt_neox"))
    heads = graph.by_name["gpt_neox.layers.0.attention/attention.group"].members
    fused = next(m for m in heads if m.tensor.endswith("query_key_value.weight"))
    assert fused.indices(2).tolist() == list(range(72, 108))


def test_experts_tie_router_rows_to_expert_parameters_and_leave_enough_for_top_k():
    graph = trace(tiny("mixtral"))
    experts = graph.by_name["model.layers.0.mlp/moe.expert"]
    assert {m.tensor.removeprefix("model.layers.0.mlp.") for m in experts.members} == {
        "gate.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    assert experts.minimum == 2
    assert {s.function for s in experts.sites} == {"softmax", "topk"}


def test_an_axis_under_a_norm_knows_its_scale_and_epsilon():
    graph = trace(tiny("olmo2"))
    group = graph.by_name["model.layers.0.self_attn/attention.group"]
    path = "model.layers.0.self_attn"
    assert group.exact
    assert {(n.tensor, n.owner, n.epsilon) for n in group.norms} == {
        (f"{path}.{name}.weight", f"{path}.{name}", "variance_epsilon") for name in ("q_norm", "k_norm")
    }
    assert graph.by_name["model.layers.0.mlp/mlp.channel"].norms == ()


class Centred(nn.Module):
    """A statistic that no mask can leave units out of."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(10, 14), nn.Linear(14, 10)

    def forward(self, x):
        inner = self.up(x)
        return x + self.down(inner / inner.std(-1, keepdim=True))


def test_an_axis_under_a_mean_is_inexact_and_says_why():
    graph = trace(nn.Sequential(Centred()), example_inputs={"input": torch.zeros(3, 10)})
    group = next(g for g in graph.groups if any(m.tensor == "0.up.bias" for m in g.members))
    assert not group.exact and "statistic is taken" in group.inexact_reason


def test_position_biases_per_head_are_cut_where_they_enter_a_layer():
    graph = trace(tiny("bloom"))
    slices = {(c.module, c.argument) for c in graph.constants}
    assert slices == {(f"transformer.h.{i}", "alibi") for i in range(LAYERS)}


def test_frozen_axes_say_why():
    graph = trace(tiny("llama"))
    reasons = {g.role: g.frozen for g in graph.groups if g.frozen}
    assert {"vocab", "attention.qk_dim", "attention.v_dim"} <= set(reasons)
    assert "token ids" in reasons["vocab"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_real_and_meta_models_have_the_same_graph(name):
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config(name))
    assert trace(meta) == trace(tiny(name))


def test_eager_attention_gives_the_same_groups_as_fused_attention():
    def prunable(implementation):
        graph = trace(tiny("llama", attn_implementation=implementation))
        return [(g.name, g.size, g.members) for g in graph.select()]

    assert prunable("eager") == prunable("sdpa")


def test_tracing_leaves_the_model_as_it_was():
    model = tiny("mixtral").train()
    ids = tokens()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(input_ids=ids).logits
    setting = model.config._experts_implementation
    trace(model)
    assert model.training and model.config._experts_implementation == setting
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_tied_parameters_are_one_tensor():
    graph = trace(tiny("llama-tied-bias"))
    assert graph.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in graph.shapes


def test_the_graph_survives_json():
    graph = trace(tiny("falcon-alibi"))
    again = DependencyGraph.model_validate(json.loads(graph.model_dump_json()))
    assert again == graph and again.fingerprint == graph.fingerprint


class Mixer(nn.Module):
    """A module outside of transformers, with an operation that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(10, 14)
        self.down = nn.Linear(14, 10)

    def forward(self, x):
        return self.down(torch.special.i0(torch.fft.rfft(self.up(x)).real).repeat(1, 2)[:, :14])


def test_an_unknown_operation_freezes_what_it_touches():
    model = nn.Sequential(Mixer())
    graph = trace(model, example_inputs={"input": torch.zeros(3, 10)})
    assert any("no rule for the operation" in note for note in graph.notes)
    group = next(g for g in graph.groups if any(m.tensor == "0.up.weight" and m.dim == 0 for m in g.members))
    assert "no rule for the operation" in group.frozen and "'0'" not in group.frozen


def test_a_forward_that_raises_names_the_module_and_the_cause():
    model = tiny("llama")

    def broken(*_args, **_kwargs):
        raise ValueError("the flux is off")

    model.model.layers[1].mlp.forward = broken
    with pytest.raises(TraceError, match=r"ValueError in module 'model.layers.1.mlp': the flux is off"):
        trace(model)


def test_an_error_says_where_in_the_code_and_what_else_could_be_given():
    def broken(*_args, **_kwargs):
        raise ValueError("the flux is off")

    model = tiny("llama")
    model.model.layers[1].mlp.forward = broken
    with pytest.raises(TraceError) as caught:
        trace(model)
    message = str(caught.value)
    assert f"the flux is off (test_run.py, line {broken.__code__.co_firstlineno + 1}). " in message
    assert "It was called with input_ids (1, 11), use_cache=False; pass example_inputs if it needs others" in message
    assert "of attention_mask, position_ids" in message
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.where == "model.layers.1.mlp"


class Unknown(nn.Module):
    """What runs through the blocks comes out of an operation that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)) for _ in range(2))

    def forward(self, input_ids):
        x = torch.fft.fft(self.embedding(input_ids)).real
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_what_an_unknown_operation_makes_is_frozen_too():
    """Its result stays as wide as ever, so that nothing that reads it can be cut."""
    graph = trace(Unknown())
    assert [(g.layer, g.size) for g in graph.select(role="mlp.channel")] == [(0, 10), (1, 10)]
    readers = [g for g in graph.groups if any(m.tensor == "head.weight" and m.dim == 1 for m in g.members)]
    assert [g.frozen for g in readers] == ["it comes out of '_fft_r2c', which could not be followed, in the model"]


class Tied(nn.Module):
    """One block at two places, and a buffer that two modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)
        block = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
        self.first, self.second = block, block
        self.gates = nn.ModuleList(nn.Module() for _ in range(2))
        shared = torch.rand(10) + 0.5
        for gate in self.gates:
            gate.register_buffer("scale", shared)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for block, gate in zip((self.first, self.second), self.gates, strict=True):
            x = x + block[2](block[1](block[0](x)) * gate.scale)
        return self.head(x)


def test_shared_modules_and_buffers_are_one_tensor():
    model = Tied()
    graph = trace(model)
    assert graph.tied == {
        **{f"second.{layer}.{leaf}": f"first.{layer}.{leaf}" for layer in (0, 2) for leaf in ("weight", "bias")},
        "gates.1.scale": "gates.0.scale",
    }
    (inner,) = [g for g in graph.groups if g.size == 10]
    assert [m.tensor for m in inner.members] == ["first.0.weight", "first.0.bias", "first.2.weight", "gates.0.scale"]
    ids = torch.arange(5)[None]
    plan = PrunePlan.remove(graph, {inner.name: [1, 8]})
    with masked(model, plan, graph):
        expected = model(ids)
    small = reshape(model, plan, graph)
    assert torch.allclose(small(ids), expected, atol=1e-6)
    assert small.first is small.second and small.gates[0].scale is small.gates[1].scale
    assert tuple(small.gates[1].scale.shape) == (8,)
