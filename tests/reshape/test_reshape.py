"""Law 1, masked equals reshaped, on real decoders; what happens to adapters, ties, gradients and sizes."""

import copy
import io

import pytest
import torch
from torch import nn

from graphprune.errors import PlanError, ReshapeError
from graphprune.graph import DependencyGraph
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import apply, cut_model, cut_tensor, reshape
from graphprune.reshape.history import history_of
from graphprune.trace import trace
from tests.decoders import DECODERS, tiny, tokens


def model_and_graph(name: str, **changes):
    model = tiny(name, **changes)
    # The fused kernel wants expert widths that are multiples of 4, stock models included.
    model.config._experts_implementation = "eager"
    return model, trace(model)


def even(graph: DependencyGraph) -> PrunePlan:
    """Every second unit of every exact group, as far as its minimum allows."""
    return PrunePlan.remove(
        graph,
        {g.name: range(0, g.size, 2)[: min(g.size // 2, g.size - g.minimum)] for g in graph.select() if g.exact},
    )


def uneven(graph: DependencyGraph) -> PrunePlan:
    """More from later layers, none from the first."""
    removed = {}
    for g in graph.select():
        if g.exact:
            most = g.size - g.minimum
            removed[g.name] = range(most - min(most, (g.layer or 0) * max(1, g.size // 8)), most)
    return PrunePlan.remove(graph, removed)


@torch.no_grad()
def answers(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and tokens generated with a cache."""
    generated = model.generate(tokens(), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    return model(tokens()).logits, generated


@pytest.mark.parametrize("choose", [even, uneven])
@pytest.mark.parametrize("name", DECODERS)
def test_masked_equals_reshaped(name, choose):
    model, graph = model_and_graph(name)
    plan = choose(graph)
    before = sum(p.numel() for p in model.parameters())
    plain, _ = answers(model)
    with masked(model, plan, graph):
        logits, generated = answers(model)
    assert (logits - plain).abs().max() > 1e-2, "the plan changes nothing, so equality would prove nothing"

    reshape(model, plan, graph)

    got, got_generated = answers(model)
    torch.testing.assert_close(got, logits, rtol=0, atol=1e-5)
    assert torch.equal(got_generated, generated)
    after = sum(p.numel() for p in model.parameters())
    assert after < before


def test_the_law_notices_a_wrong_cut(monkeypatch):
    """The same comparison with one tensor cut at the wrong place: the law is no tautology."""
    model, graph = model_and_graph("llama")
    plan = even(graph)
    with masked(model, plan, graph):
        logits, _ = answers(model)
    wrong = next(m.tensor for g in graph.select(role="mlp.channel", layers=1) for m in g.members if not m.consumes)
    honest = apply.plan_cuts

    def shifted(graph, plan):
        cuts = honest(graph, plan)
        cuts[wrong] = {d: kept - 1 for d, kept in cuts[wrong].items()}  # the removed ones instead of the kept
        return cuts

    monkeypatch.setattr(apply, "plan_cuts", shifted)
    cut_model(model, graph, plan)
    got, _ = answers(model)
    assert (got - logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "bloom"])
def test_pruning_twice(name):
    model, graph = model_and_graph(name)
    reshape(model, uneven(graph), graph)
    again = trace(model)
    roles = ("mlp.channel", "attention.group")
    plan = PrunePlan.remove(again, {g.name: [0] for g in again.select(role=roles) if g.size > 1})
    with masked(model, plan, again):
        logits, generated = answers(model)
    reshape(model, plan, again)
    got, got_generated = answers(model)
    torch.testing.assert_close(got, logits, rtol=0, atol=1e-5)
    assert torch.equal(got_generated, generated)
    assert len(history_of(model).steps) == 1, "two prunings of one model are one plan"


@pytest.mark.parametrize("name", ["phi3", "bloom"])
def test_a_reshaped_model_can_be_copied(name):
    model, graph = model_and_graph(name)
    reshape(model, uneven(graph), graph)
    logits, _ = answers(model)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(answers(copied)[0], logits, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(copied, buffer)
    buffer.seek(0)
    torch.testing.assert_close(answers(torch.load(buffer, weights_only=False))[0], logits, rtol=0, atol=0)


def test_tied_parameters_stay_tied():
    model, graph = model_and_graph("llama-tied-bias")
    reshape(model, even(graph), graph)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_a_removed_layer_shares_with_one_that_stays_is_cut():
    model = tiny("llama")
    layers = model.model.layers
    layers[-1].mlp = layers[0].mlp
    layers[-1].input_layernorm = layers[0].input_layernorm
    layers[0].input_layernorm.variance_epsilon = 1.0  # large enough to be seen: it grows with what is left
    graph = trace(model)
    shared = next(g for g in graph.select(role="mlp.channel") if any("layers.0." in m.tensor for m in g.members))
    plan = PrunePlan.remove(graph, {"model.layers/layer": [0], "hidden": [1, 4], shared.name: [0, 2]})
    with masked(model, plan, graph):
        logits, generated = answers(model)

    reshape(model, plan, graph)

    got, got_generated = answers(model)
    torch.testing.assert_close(got, logits, rtol=0, atol=1e-5)
    assert torch.equal(got_generated, generated)
    assert model.model.layers[-1].mlp.down_proj.in_features == shared.size - 2


def test_parameters_are_new_objects_that_keep_what_they_were():
    model, graph = model_and_graph("llama")
    model = model.to(torch.bfloat16)
    frozen = model.model.layers[1].mlp.down_proj.weight.requires_grad_(False)
    model(tokens()).logits.float().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    old = dict(model.named_parameters())
    plan = PrunePlan.remove(graph, {g.name: [0] for g in graph.select(layers=":")})
    replaced = cut_model(model, graph, plan)

    assert model.model.layers[1].mlp.down_proj.weight is not frozen
    assert not model.model.layers[1].mlp.down_proj.weight.requires_grad
    assert {id(r.new) for r in replaced} <= {id(p) for p in model.parameters()}
    for name, new in model.named_parameters():
        assert new.dtype == torch.bfloat16
        mine = [r for r in replaced if r.new is new]
        if mine and name in gradients:
            assert torch.equal(new.grad, cut_tensor(gradients[name], mine[0].dims))
            assert torch.equal(new, cut_tensor(old[name], mine[0].dims))
            assert mine[0].old is old[name]
        elif not mine:
            assert new is old[name]
    model(tokens()).logits.float().sum().backward()


def test_standard_layers_say_their_new_sizes():
    for name in ("llama", "gpt2"):
        model, graph = model_and_graph(name)
        reshape(model, even(graph), graph)
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert linear
        assert all((m.out_features, m.in_features) == tuple(m.weight.shape) for m in linear)
        conv = [m for m in model.modules() if type(m).__name__ == "Conv1D"]
        assert all((m.nx, m.nf) == tuple(m.weight.shape) for m in conv)


def test_a_failure_leaves_the_model_untouched():
    model, graph = model_and_graph("llama")
    plan = even(graph)
    bad = model.model.layers[2].mlp.down_proj
    bad.weight = nn.Parameter(torch.randn(48, 41))
    state = dict(model.named_parameters())
    with pytest.raises(ReshapeError, match=r"down_proj\.weight': expected shape \(48, 40\).*got \(48, 41\)"):
        reshape(model, plan, graph)
    assert all(p is state[n] for n, p in model.named_parameters())
    assert not history_of(model).steps


def test_another_models_plan_is_refused():
    model, graph = model_and_graph("llama")
    _, other = model_and_graph("gpt2")
    with pytest.raises(PlanError, match="fingerprint"):
        reshape(model, even(other), graph)


def test_quantised_weights_are_refused():
    model, graph = model_and_graph("llama")
    layer = model.model.layers[1].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ReshapeError, match=r"quantised \(torch\.int8\).*quantise the result"):
        reshape(model, even(graph), graph)


def test_a_model_without_weights_can_be_cut():
    model, graph = model_and_graph("qwen3")
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
    cut_model(empty, graph, even(graph))
    reshape(model, even(graph), graph)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),
        ("phi3", "all-linear"),
        ("mixtral", ["q_proj", "o_proj"]),
    ],
)
def test_adapters_are_cut_with_their_layers(name, targets):
    peft = pytest.importorskip("peft")
    model, graph = model_and_graph(name)
    more = {}
    if name == "mixtral":
        more = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    config = peft.LoraConfig(
        r=3, target_modules=targets, init_lora_weights=False, fan_in_fan_out=name == "gpt2", **more
    )
    wrapped = peft.get_peft_model(model, config).eval()
    plan = even(graph)
    with masked(wrapped, plan, graph):
        logits, _ = answers(wrapped)
    reshape(wrapped, plan, graph)
    torch.testing.assert_close(answers(wrapped)[0], logits, rtol=0, atol=1e-5)
    for module in wrapped.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            assert module.lora_A["default"].weight.shape == (3, module.in_features)
            assert module.lora_B["default"].weight.shape == (module.out_features, 3)
    names = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in n for n in names)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(answers(merged)[0], logits, rtol=0, atol=1e-4)


def test_adapters_that_are_no_plain_lora_are_refused():
    peft = pytest.importorskip("peft")
    model, graph = model_and_graph("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, use_dora=True, target_modules=["down_proj"]))
    state = dict(wrapped.named_parameters())
    with pytest.raises(ReshapeError, match="only plain LoRA"):
        reshape(wrapped, even(graph), graph)
    assert all(p is state[n] for n, p in wrapped.named_parameters())
