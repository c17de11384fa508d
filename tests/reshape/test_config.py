"""Stock configs for pruned models: found where one exists, refused with the reason where none does."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from graphprune.plan import PrunePlan
from graphprune.reshape import cut_model, reshape
from graphprune.reshape.candidates import fields, matching
from graphprune.reshape.config import find_stock_config
from graphprune.reshape.history import history_of
from graphprune.reshape.search import Search
from graphprune.reshape.view import ConfigView
from graphprune.trace import trace
from tests.decoders import tiny, tokens


def remove(graph, units):
    """The same units of every group of a role."""
    return PrunePlan.remove(graph, {g.name: units[g.role] for g in graph.select() if g.role in units})


@pytest.mark.parametrize(
    ("name", "units", "expected"),
    [
        ("llama", {"attention.group": [1, 3]}, {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 6}),
        ("llama", {"attention.query": [0]}, {"num_key_value_heads": 4, "num_attention_heads": 4}),
        ("llama", {"mlp.channel": [0, 1, 2]}, {"intermediate_size": 37, "num_attention_heads": 8}),
        ("mistral", {"attention.group": [0]}, {"num_key_value_heads": 3, "num_attention_heads": 6, "head_dim": 6}),
        (
            "qwen2",
            {"attention.group": [1, 2], "attention.query": [1], "mlp.channel": [5]},
            {"num_key_value_heads": 2, "num_attention_heads": 2, "intermediate_size": 39, "head_dim": 6},
        ),
        ("phi3", {"attention.group": [0, 2]}, {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 6}),
        ("mixtral", {"moe.expert": [2]}, {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen3_moe", {"moe.channel": [0, 1, 2, 3]}, {"moe_intermediate_size": 16, "num_experts": 5}),
        ("gpt2", {"mlp.channel": [0]}, {"n_inner": 39, "n_head": 8}),
    ],
)
def test_an_even_plan_gets_a_stock_config(name, units, expected):
    model = tiny(name)
    graph = trace(model)
    reshape(model, remove(graph, units), graph)
    assert history_of(model).stock
    assert {key: getattr(model.config, key) for key in expected} == expected

    fresh = AutoModelForCausalLM.from_config(type(model.config).from_dict(model.config.to_dict())).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh(tokens()).logits, model(tokens()).logits, rtol=0, atol=1e-6)
    assert all(m.config is model.config for m in model.modules() if hasattr(m, "config"))


@pytest.mark.parametrize(
    ("name", "units", "reason"),
    [
        ("gpt2", {"attention.group": [0, 1]}, "no config of this class describes the result"),
        ("bloom", {"attention.group": [0, 1]}, "computes a constant per unit"),
        ("llama", {"attention.group": [0, 1], "mlp.channel": [0]}, None),
    ],
)
def test_where_there_is_none_the_reason_is_said(name, units, reason):
    model = tiny(name)
    graph = trace(model)
    plan = remove(graph, units)
    if reason is None:  # the last layer keeps one channel more
        last = graph.select(role="mlp.channel", layers=-1).names[0]
        plan = PrunePlan.remove(graph, {n: u for n, u in plan.removed.items() if n != last})
        reason = f"layers differ: '.*' keeps 39 of 40 units and '{last}' keeps 40"
    reshape(model, plan, graph)
    history = history_of(model)
    assert not history.stock
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(history.why_not)


def test_equal_shapes_with_other_logits_are_not_enough():
    """Half of every head and half of the heads look the same; only one of them is what was done."""
    model = tiny("llama", num_attention_heads=4, num_key_value_heads=4, head_dim=4)
    graph = trace(model)
    plan = remove(graph, {"attention.group": [0, 2]})
    cut_model(model, graph, plan)
    assert not history_of(model).stock
    found = find_stock_config(model, history_of(model))
    assert found.changes[("num_attention_heads",)] == 2
    assert found.config.head_dim == 4


def test_without_weights_the_structure_decides_between_equal_shapes():
    config = tiny("llama", num_attention_heads=4, num_key_value_heads=4, head_dim=4).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    graph = trace(model)
    reshape(model, remove(graph, {"attention.group": [0, 2]}), graph)
    assert (model.config.num_attention_heads, model.config.head_dim) == (2, 4)


def test_a_config_that_cannot_run_is_no_candidate():
    """Heads of size 3 have the right shapes for half of the heads, but rotary embeddings need an even size."""
    model = tiny("llama")
    graph = trace(model)
    reshape(model, remove(graph, {"attention.group": [0, 2]}), graph)
    search = Search(type(model), type(model.config), history_of(model).base_config)
    assert "cannot run" in search.misread({("head_dim",): 3}, history_of(model).steps[-1])
    assert search.misread({("num_attention_heads",): 4, ("num_key_value_heads",): 2}, history_of(model).steps[-1]) == ""


def test_a_model_that_cannot_be_asked_proves_no_config():
    model = tiny("llama")
    graph = trace(model)

    def refuse(*_):
        raise RuntimeError("two rows for each text, please")

    model.model.register_forward_pre_hook(refuse)
    reshape(model, remove(graph, {"mlp.channel": [0]}), graph)
    assert not history_of(model).stock
    assert "cannot answer a simple question: two rows for each text" in history_of(model).why_not


def test_layers_that_differ_read_their_own_config():
    model = tiny("phi3")
    graph = trace(model)
    names = graph.select(role="attention.group").names
    reshape(model, PrunePlan.remove(graph, {names[1]: [0], names[2]: [0, 1]}), graph)
    attention = [layer.self_attn for layer in model.model.layers]
    assert [a.config.num_attention_heads for a in attention] == [8, 6, 4]
    assert model.config.num_attention_heads == 8
    assert isinstance(attention[2].config, ConfigView)
    model.set_attn_implementation("eager")
    assert attention[2].config._attn_implementation == "eager"


def test_fields_are_found_in_sub_configs_and_lists():
    config = {
        "a": 4,
        "pad_token_id": 4,
        "flag": True,
        "text_config": {"model_type": "x", "b": [1, 2]},
        "rope": {"c": 4},
    }
    assert dict(fields(config)) == {("a",): 4, ("text_config", "b"): [1, 2]}


def test_the_smallest_fitting_set_of_changes_comes_first():
    base, target = {"w": (8, 4)}, {"w": (4, 4)}
    built = []

    def build(changes):
        built.append(changes)
        if changes.get(("bad",)):
            return None
        return {"w": (changes.get(("rows",), 8), changes.get(("columns",), 4))}

    options = [(("bad",), 1), (("columns",), 2), (("nothing",), 1), (("rows",), 4)]
    found = matching(build, {}, options, base, target)
    assert next(found) == {("rows",): 4}
    assert next(found) == {("rows",): 4, ("nothing",): 1}
    assert next(found, None) is None
    assert not any(("columns",) in changes and len(changes) > 1 for changes in built)
