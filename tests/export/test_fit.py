"""Export targets become sizes before anything is scored, and the result loads as was said."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from graphprune import ranking
from graphprune.checkpoint import load, save
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import SpecError
from graphprune.export.fit import fit
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.schema import PruneSpec
from graphprune.trace import trace
from tests.decoders import tiny, tokens

HEADS = {"role": "attention.group", "keep": 3}
SIXTEEN = {"num_attention_heads": 16, "num_key_value_heads": 16}


def make_spec(*targets, **parts):
    return PruneSpec.model_validate({"targets": list(targets), **parts})


def pruned(model, spec):
    """What a run makes of the model, with random scores; the fit, and the plan."""
    graph = trace(model)
    fitted = fit(spec, graph, model)
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in graph}
    plan = ranking.plan(graph, fitted.spec, scores, limits=fitted.limits)
    reshape(model, plan, graph)
    return fitted, plan


def reloads(model, folder):
    """Whether a stock loader gives the same logits; the loaded model."""
    save(model, folder)
    assert Manifest.read(folder).tier == "hf"
    stock, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(tokens()).logits, model(tokens()).logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(load(folder)(tokens()).logits, model(tokens()).logits, rtol=0, atol=1e-6)
    return stock


@pytest.mark.parametrize(
    ("name", "changes", "targets", "kept"),
    [
        ("qwen2", {}, [HEADS, {"role": "mlp.channel", "ratio": 0.4}], {"attention.group": 3, "mlp.channel": 24}),
        ("mistral", {"hidden_size": 40}, [HEADS], {"attention.group": 3}),
        ("phi3", {}, [HEADS, {"role": "attention.query", "keep": 1}], {"attention.group": 3, "attention.query": 1}),
        (
            "mixtral",
            {},
            [HEADS, {"role": "moe.expert", "count": 1}, {"role": "moe.channel", "ratio": 0.3}],
            {"attention.group": 3, "moe.expert": 4, "moe.channel": 28},
        ),
        # The head size is hidden // heads there, so heads go only together with hidden units.
        (
            "gpt_neox",
            {},
            [HEADS, {"role": "hidden", "ratio": 0.25}, {"role": "mlp.channel", "keep": 30}],
            {"attention.group": 3, "hidden": 36, "mlp.channel": 30},
        ),
        ("llama", {}, [{"role": "layer", "count": 1}, {"role": "mlp.channel", "keep": 39}], {"layer": 2}),
    ],
)
def test_what_a_class_can_express_stays_as_it_was_asked(name, changes, targets, kept, tmp_path):
    model = tiny(name, **changes)
    fitted, plan = pruned(model, make_spec(*targets))
    assert (fitted.tier, fitted.notes, bool(fitted.limits)) == ("hf", (), False)
    after = {n.rsplit("/", 1)[-1]: size for n, size in plan.sizes_after().items()}
    assert {role: after[role] for role in kept} == kept
    reloads(model, tmp_path / "small")


def test_a_class_that_checks_heads_has_a_sibling_that_does_not(tmp_path):
    """40 hidden units are no multiple of 6 heads, which one config class insists on and another does not."""
    model = tiny("llama", hidden_size=40)
    fitted, _ = pruned(model, make_spec(HEADS))
    assert (fitted.tier, fitted.notes) == ("hf", ())
    stock = reloads(model, tmp_path / "small")
    assert type(stock).__name__ != type(model).__name__
    assert stock.config.num_attention_heads == 6
    assert stock.config.architectures == [type(stock).__name__]

    again = load(tmp_path / "small")  # of another class now, and pruned further
    fitted, _ = pruned(again, make_spec({"role": "mlp.channel", "ratio": 0.5}))
    assert fitted.tier == "hf"
    reloads(again, tmp_path / "smaller")


@pytest.mark.parametrize("name", ["llama-tied-bias", "gemma2"])
def test_heads_are_rounded_where_the_class_insists(name, tmp_path):
    """13 of 16 heads asked, 12 kept: 48 hidden units are a multiple of 12, and not of 13."""
    model = tiny(name, **SIXTEEN)
    fitted, plan = pruned(model, make_spec({"role": "attention.group", "keep": 13}))
    assert fitted.tier == "hf"
    assert plan.sizes_after()["model.layers.1.self_attn/attention.group"] == 12
    note = (
        f"attention.group: 13 of 16 units asked for, 12 kept, because of the sizes that {type(model).__name__} can be "
        "built with (in 3 groups)"
    )
    assert note in fitted.notes
    assert note in plan.notes
    reloads(model, tmp_path / "small")


def test_a_change_that_is_not_moderate_goes_to_the_next_target():
    """Of 16 heads 9, 10 and 11 are refused: 8 and 12 are as near to 10, and more stay; but that is an eighth of all."""
    spec = {"role": "attention.group", "keep": 10}
    model = tiny("llama-tied-bias", **SIXTEEN)
    graph = trace(model)
    near = fit(make_spec(spec), graph, model)
    assert (near.tier, set(near.limits.keep.values())) == ("hf", {12})
    far = fit(make_spec({"role": "attention.group", "keep": 15}), graph, model)
    assert far.tier == "hf-remote-code"
    assert "15 of 16 units asked for, it takes 1, 2, 3, 4, 6, 8, 12" in far.why_not
    assert str(far).startswith(
        "tier hf-remote-code, loads with from_pretrained and trust_remote_code=True, not with stock"
    )
    only = fit(make_spec({"role": "attention.group", "keep": 15}, export={"targets": "hf"}), graph, model)
    assert (only.tier, set(only.limits.keep.values())) == ("hf", {12})
    own = fit(make_spec({"role": "attention.group", "keep": 15}, export={"targets": ["graphprune"]}), graph, model)
    assert (own.tier, own.notes, bool(own.limits)) == ("graphprune", (), False)


def test_where_no_target_can_be_had_the_error_says_what_to_add():
    model = tiny("gpt_neox")
    with pytest.raises(SpecError, match=r"add hf-remote-code or graphprune to export.targets") as raised:
        fit(make_spec(HEADS, export={"targets": "hf"}), trace(model), model)
    assert "attention.group: 3 of 4 units asked for, it takes no other size" in str(raised.value)
    with pytest.raises(SpecError, match=r"vllm \(export.runtimes\) can load nothing else"):
        fit(make_spec(HEADS, export={"runtimes": "vllm"}), trace(model), model)


def test_uneven_layers_go_to_the_next_target_or_are_made_even(tmp_path):
    some = {"role": "mlp.channel", "ratio": 0.5, "layers": "1:"}
    model = tiny("llama")
    graph = trace(model)
    loose = fit(make_spec(some), graph, model)
    assert (loose.tier, bool(loose.limits)) == ("hf-remote-code", False)
    assert "layers differ" in loose.why_not
    fitted, plan = pruned(model, make_spec(some, export={"targets": "hf"}))
    assert fitted.tier == "hf"
    assert "mlp.channel: 80 of 120 units asked for in all, 27 of 40 kept in each of 3 groups" in fitted.notes[0]
    assert {plan.sizes_after()[n] for n in graph.select(role="mlp.channel").names} == {27}
    reloads(model, tmp_path / "small")


@pytest.mark.parametrize("scope", ["role", "global"])
def test_a_wide_scope_is_even_only_where_nothing_else_will_do(scope, tmp_path):
    target = {"role": ["mlp.channel", "attention.group"], "ratio": 0.5}
    model = tiny("llama")
    graph = trace(model)
    assert fit(make_spec(target, scope=scope), graph, model).tier == "hf-remote-code"
    fitted, plan = pruned(model, make_spec(target, scope=scope, export={"targets": ["hf"]}))
    assert (fitted.tier, fitted.spec.scope) == ("hf", "layer")
    assert f"not by scope '{scope}'" in fitted.notes[0]
    assert {plan.sizes_after()[n] for n in graph.select(role="mlp.channel").names} == {20}
    reloads(model, tmp_path / "small")


def test_frozen_groups_cannot_be_made_even():
    model = tiny("llama")
    graph = trace(model)
    name = graph.select(role="mlp.channel").names[0]
    frozen = graph.by_name[name].model_copy(update={"frozen": "somebody said so"})
    graph = graph.model_copy(update={"groups": tuple(frozen if g.name == name else g for g in graph.groups)})
    with pytest.raises(SpecError, match=r"somebody said so\), so layers would differ"):
        fit(make_spec({"role": "mlp.channel", "ratio": 0.5}, export={"targets": "hf"}), graph, model)


def test_the_forecast_needs_no_weights():
    config = tiny("llama", hidden_size=40).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    before = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert fit(make_spec(HEADS), trace(model), model).tier == "hf"
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == before
    assert not history_of(model).steps


def test_a_model_that_was_pruned_before_is_asked_as_what_it_is():
    model = tiny("llama-tied-bias", **SIXTEEN)
    pruned(model, make_spec({"role": "attention.group", "keep": 12}))
    graph = trace(model)
    fitted = fit(make_spec({"role": "attention.group", "keep": 9}), graph, model)
    assert (fitted.tier, set(fitted.limits.keep.values())) == ("hf", {8})


def test_what_only_weights_can_tell_is_said():
    """A norm over all query heads shares its epsilon with norms that are not pruned."""
    model = tiny("olmo2")
    fitted = fit(make_spec({"role": "attention.query", "keep": 1}), trace(model), model)
    assert fitted.tier == "hf"
    assert "cannot give the pruned norms epsilons of their own" in fitted.notes[0]
