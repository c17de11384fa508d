"""One-shot scores: what is run, what is averaged, what is refused, and that the model stays exactly as it is."""

import copy
import sys

import peft
import pytest
import torch

import graphprune as gp
from graphprune.errors import CriterionError, DataError, NonFiniteError, SpecError
from graphprune.importance import Criterion, Options, build, criteria
from graphprune.schema import PruneSpec
from graphprune.score import check_finite, score, score_groups
from tests.decoders import tiny, tokens

TARGETS = [{"role": "attention.group", "ratio": 0.5}, {"role": "mlp.channel", "ratio": 0.5, "layers": "1:"}]
CRITERIA = [
    "lora",
    {"name": "lora", "variant": "reference"},
    "taylor",
    {"name": "taylor", "order": "mixed", "vectorize": True},
    "magnitude",
    "wanda",
    "gate",
    {"name": "gate", "mean_of": "sample"},
    "random",
    {"name": "torch_pruning", "importance": "GroupTaylorImportance"},
]


def spec(criterion="lora", targets=TARGETS, **more):
    return PruneSpec.model_validate({"targets": targets, "criterion": criterion, **more})


@pytest.fixture(scope="module")
def traced():
    model = tiny("llama")
    return model, gp.trace(model)


@pytest.fixture
def model(traced):
    return traced[0]


@pytest.fixture
def graph(traced):
    return traced[1]


@pytest.fixture
def batches():
    ids = tokens(batch=4)
    return [{"input_ids": ids[:2]}, {"input_ids": ids[2:]}]


def state(model):
    return (
        [(name, id(m), m.training, sorted(vars(m)), len(m._forward_hooks) + len(m._forward_pre_hooks))
         for name, m in model.named_modules()],
        [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
    )  # fmt: skip


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_every_criterion_scores_what_is_selected_and_leaves_the_model_alone(model, graph, batches, criterion):
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    before, values, generator = state(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scores = score(model, graph, spec(criterion), batches)

    selected = [*graph.select(role="attention.group"), *graph.select(role="mlp.channel", layers="1:")]
    assert list(scores) == [g.name for g in selected]
    for group in selected:
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].dtype == torch.float32
        assert scores[group.name].device.type == "cpu"
        assert len(scores[group.name].unique()) > 1
    assert state(model) == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert torch.equal(torch.get_rng_state(), generator)
    model.eval().requires_grad_(True)


def test_the_public_name():
    assert gp.score is score


def test_weights_alone_run_nothing(model, graph, monkeypatch):
    monkeypatch.setattr(model, "forward", None)
    assert len(score(model, graph, spec("magnitude"))) == 5
    assert len(score(model, graph, spec("random"), [])) == 5


def mean_loss(model, *rows):
    return sum(model(input_ids=row, labels=row).loss for row in rows) / len(rows)


def unit_sums(group, saliency):
    return sum(
        torch.stack([saliency[m.tensor].index_select(m.dim, m.indices(u)).sum() for u in range(group.size)])
        for m in group.members
    )


def gradients(model, loss):
    names = [n for n, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def test_taylor_is_of_the_mean_gradient_over_batches(model, graph, batches):
    grads = gradients(model, mean_loss(model, *(b["input_ids"] for b in batches)))
    found = score(model, graph, spec("taylor"), iter(batches))
    for name, scores in found.items():
        saliency = {n: (model.get_parameter(n).detach() * g).abs() for n, g in grads.items()}
        torch.testing.assert_close(scores, unit_sums(graph.by_name[name], saliency), rtol=1e-4, atol=1e-7)


def test_fisher_information_is_of_single_samples(model, graph, batches):
    rows = torch.cat([b["input_ids"] for b in batches])
    samples = [gradients(model, mean_loss(model, row[None])) for row in rows]
    fisher = {n: torch.stack([s[n] ** 2 for s in samples]).mean(0) for n in samples[0]}
    found = score(model, graph, spec({"name": "taylor", "order": "second"}), batches)
    for name, scores in found.items():
        saliency = {n: model.get_parameter(n).detach() ** 2 * f for n, f in fisher.items()}
        torch.testing.assert_close(scores, unit_sums(graph.by_name[name], saliency), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mean_of", ["sample", "batch", "gradient"])
def test_where_the_gate_takes_its_mean(model, graph, batches, mean_of):
    group = next(iter(graph.select(role="attention.group", layers=1)))
    consumer = group.consumers[0]
    rows = torch.cat([b["input_ids"] for b in batches])
    parts = {"sample": rows.split(1), "batch": rows.split(2), "gradient": [rows]}[mean_of]
    expected = 0
    for part in parts:
        gradient = gradients(model, mean_loss(model, part))[consumer.tensor]
        expected += consumer.reduce(gradient * model.get_parameter(consumer.tensor).detach()).abs() / len(parts)
    found = score(model, graph, spec({"name": "gate", "mean_of": mean_of}), batches)[group.name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_lora_with_fresh_adapters_sees_the_gradient_through_one_projection(model, graph, batches):
    """B = 0: the surrogate is ∂B·A = s·G·AᵀA, with A as PEFT draws it from the spec's seed."""
    target = [{"role": "mlp.channel", "ratio": 0.5, "layers": 1}]
    chosen = spec("lora", target, lora={"r": 4, "alpha": 6}, seed=3)
    (name, found), = score(model, graph, chosen, batches).items()  # fmt: skip
    group = graph.by_name[name]

    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=[m.tensor.removesuffix(".weight") for m in group.members]
    )
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    grads = gradients(model, mean_loss(model, *(b["input_ids"] for b in batches)))
    saliency = {}
    for m in group.members:
        layer = wrapped.get_base_model().get_submodule(m.tensor.removesuffix(".weight"))
        a = layer.lora_A["default"].weight.detach()
        surrogate = 1.5 * grads[m.tensor] @ a.T @ a
        saliency[m.tensor] = (surrogate * model.get_parameter(m.tensor).detach()) ** 2
    torch.testing.assert_close(found, unit_sums(group, saliency), rtol=1e-3, atol=0)
    assert torch.equal(found, score(model, graph, chosen, batches)[name]), "seeded"


def test_lora_uses_the_adapters_that_are_there(model, graph, batches):
    target = [{"role": "mlp.channel", "ratio": 0.5, "layers": 1}]
    group = next(iter(graph.select(role="mlp.channel", layers=1)))
    last = group.members[-1].tensor.removesuffix(".weight")
    wrapped = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=2, lora_alpha=3, target_modules=last, init_lora_weights=False)
    )
    wrapped.requires_grad_(False)
    before = state(wrapped)
    found = score(wrapped, graph, spec("lora", target), batches)[group.name]
    assert state(wrapped) == before

    layer = wrapped.get_base_model().get_submodule(last)
    a, b = layer.lora_A["default"].weight.requires_grad_(True), layer.lora_B["default"].weight.requires_grad_(True)
    wrapped.eval()
    ga, gb = torch.autograd.grad(mean_loss(wrapped, *(x["input_ids"] for x in batches)), (a, b))
    with torch.no_grad():
        surrogate = gb @ a + b @ ga - gb @ ga
        saliency = (surrogate * (layer.base_layer.weight + 1.5 * b @ a)) ** 2
    torch.testing.assert_close(found, group.members[-1].reduce(saliency), rtol=1e-3, atol=0)


def test_an_adapted_model_without_adapters_on_a_group_is_an_error(model, graph, batches):
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(
        CriterionError, match=r"needs an adapter on at least one tensor of group 'model\.layers\.1\.mlp"
    ):
        score(wrapped, graph, spec("lora"), batches)


def test_padding_is_neither_learnt_nor_counted(model, graph):
    ids = tokens()
    padded = torch.cat([ids, torch.zeros_like(ids[:, :5])], dim=1)
    mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long().expand_as(padded)
    for criterion in ("taylor", "wanda"):
        plain = score(model, graph, spec(criterion), [{"input_ids": ids}])
        masked = score(model, graph, spec(criterion), [{"input_ids": padded, "attention_mask": mask}])
        for name, scores in plain.items():
            torch.testing.assert_close(masked[name], scores, rtol=1e-3, atol=1e-6)


def test_dropout_is_off(graph, batches):
    model = tiny("llama", attention_dropout=0.5).train()
    first = score(model, graph, spec("taylor"), batches)
    second = score(model, graph, spec("taylor"), batches)
    assert all(torch.equal(scores, second[name]) for name, scores in first.items())


def test_labels_of_the_batch_are_used(model, graph, batches):
    ids = batches[0]["input_ids"]
    own = score(model, graph, spec("gate"), [{"input_ids": ids, "labels": ids.flip(0)}])
    default = score(model, graph, spec("gate"), [{"input_ids": ids}])
    assert all(not torch.allclose(scores, default[name]) for name, scores in own.items())


def test_a_criterion_by_hand_and_one_of_another_package(model, graph, tmp_path, monkeypatch):
    class Size(Criterion):
        name, reference_url = "size", "https://example.org"
        signals = frozenset()

        def score(self, group, seen):
            return torch.full((group.size,), float(group.size))

    found = score(model, graph, spec("magnitude"), criterion=Size(Options()))
    assert {n: s.unique().tolist() for n, s in found.items()} == {n: [float(graph.by_name[n].size)] for n in found}

    (tmp_path / "gradient_criterion.py").write_text(
        "from graphprune.importance import Criterion, Options, Signal\n"
        "class Norm(Criterion):\n"
        "    name, reference_url, options_model = 'norm', 'https://example.org', Options\n"
        "    signals = frozenset({Signal.WEIGHT_GRADIENT})\n"
        "    def score(self, group, seen):\n"
        "        return sum(m.reduce(seen.gradient(m.tensor).abs()) for m in group.members)\n"
    )
    info = tmp_path / "gradient_criterion-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gradient-criterion\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphprune.criteria]\ngradnorm = gradient_criterion:Norm\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(criteria, "_pending", None)
    monkeypatch.setattr(criteria, "_items", dict(criteria._items))
    batches = [{"input_ids": tokens()}]
    found = score(model, graph, spec("gradnorm"), batches)
    grads = gradients(model, mean_loss(model, batches[0]["input_ids"]))
    for name, scores in found.items():
        expected = unit_sums(graph.by_name[name], {n: g.abs() for n, g in grads.items()})
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    sys.modules.pop("gradient_criterion")


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "phi3", "llama-tied-bias"])
def test_other_architectures(name, batches):
    """Transposed layers, expert stacks, fused projections, biases, tied embeddings: weights and gradients score all."""
    model = tiny(name, **{"n_layer" if name == "gpt2" else "num_hidden_layers": 1})
    graph = gp.trace(model)
    every = spec("taylor", [{"role": "*", "ratio": 0.1}])
    for criterion in ("taylor", "magnitude", "torch_pruning"):
        found = score(model, graph, every, batches, criterion=build(criterion))
        assert set(found) == {g.name for g in graph.select()}
        assert all(s.isfinite().all() and (s > 0).any() for s in found.values())
    roles = {"mixtral": "moe.expert"}
    gated = score(model, graph, spec("gate", [{"role": roles.get(name, "mlp.channel"), "ratio": 0.1}]), batches)
    assert all((s > 0).any() for s in gated.values())


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "criterion 'taylor' needs calibration batches, got none"),
        (
            [{"labels": torch.ones(1, 2)}],
            r"batch 0: expected a mapping with 'input_ids' of shape \(batch, length\), got dict",
        ),
        ([{"input_ids": torch.ones(3)}], r"batch 0: expected .* got a tensor of shape \(3,\)"),
        (["text"], "batch 0: expected .* got str"),
    ],
)
def test_wrong_batches(model, graph, batches, text):
    with pytest.raises(DataError, match=text):
        score(model, graph, spec("taylor"), batches)


def test_targets_that_select_nothing(model, graph):
    with pytest.raises(SpecError, match=r"targets\[0\]"):
        score(model, graph, spec("magnitude", [{"role": "moe.expert", "ratio": 0.5}]))


def test_a_loss_that_is_no_number_names_the_batch(model, graph, batches):
    nothing = {"input_ids": batches[1]["input_ids"], "labels": torch.full_like(batches[1]["input_ids"], -100)}
    before = state(model)
    with pytest.raises(NonFiniteError, match=r"the loss of batch 1 is nan, expected a number\. Check the batch"):
        score(model, graph, spec("taylor"), [batches[0], nothing])
    assert state(model) == before


class BreakBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize(
    ("criterion", "text"),
    [
        ("taylor", r"the gradient of 'model\.layers\.0\.self_attn\.q_proj\.weight' is NaN or infinite after batch 0"),
        ("lora", r"the gradient of the adapter on 'model\.layers\.0\.self_attn\.q_proj\.weight' .* is NaN"),
        ("gate", r"the mask gradient of group 'model\.layers\.0\.self_attn/attention\.group' is NaN or infinite"),
    ],
)
def test_a_gradient_that_is_no_number_names_tensor_and_batch(model, graph, batches, criterion, text):
    handle = model.model.layers[2].register_forward_pre_hook(lambda _, args: (BreakBackward.apply(args[0]), *args[1:]))
    try:
        with pytest.raises(NonFiniteError, match=text):
            score(model, graph, spec(criterion), batches)
    finally:
        handle.remove()


def test_a_score_that_is_no_number_names_group_and_unit(model, graph):
    broken = copy.deepcopy(model)
    group = next(iter(graph.select(role="mlp.channel", layers=2)))
    with torch.no_grad():
        broken.get_parameter(group.members[0].tensor)[7, 0] = float("inf")
    with pytest.raises(
        NonFiniteError, match=rf"'{group.name}': 1 of 40 scores are NaN or infinite, the first for unit 7 \(inf\)"
    ):
        score(broken, graph, spec("magnitude"))
    with pytest.raises(NonFiniteError, match="are NaN or infinite at step 3, the first for unit 0"):
        check_finite(group, torch.full((40,), float("nan")), "at step 3")


def test_scores_of_a_wrong_shape(graph):
    class Wrong(Criterion):
        name, reference_url = "wrong", "https://example.org"
        signals = frozenset()

        def score(self, group, seen):
            return torch.zeros(group.size + 1)

    group = next(iter(graph.select(role="mlp.channel", layers=2)))
    with pytest.raises(
        CriterionError,
        match=rf"criterion 'wrong' was expected to give 40 scores for group '{group.name}', got shape \(41,\)",
    ):
        score_groups(Wrong(Options()), [group], None)


def test_a_criterion_that_finds_the_unit_that_matters(model, graph, batches):
    """Blow up what one channel hands on: everything that looks at weights or data has to rank it first."""
    strong = copy.deepcopy(model)
    group = next(iter(graph.select(role="mlp.channel", layers=1)))
    with torch.no_grad():
        strong.get_parameter(group.members[0].tensor)[5] *= 20
        strong.get_parameter(group.consumers[0].tensor)[:, 5] *= 20
    for criterion in ("lora", "taylor", "magnitude", "wanda", "gate", "torch_pruning"):
        found = score(strong, graph, spec(criterion), batches)[group.name]
        assert int(found.argmax()) == 5, criterion


def test_modules_are_never_replaced_even_when_scoring_fails(model, graph, batches):
    before = state(model)
    with pytest.raises(NonFiniteError):
        score(model, graph, spec("lora"), [{**batches[0], "labels": torch.full_like(batches[0]["input_ids"], -100)}])
    assert state(model) == before


@pytest.mark.parametrize("criterion", ["taylor", {"name": "taylor", "power": 2}, "gate", "wanda", "lora"], ids=str)
def test_units_that_are_gone_are_silenced_while_others_are_scored(graph, batches, criterion):
    """As on the model without them; the lora criterion on adapters that are cut with it."""
    model = tiny("llama").double()
    if criterion == "lora":
        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj", "up_proj"]))
        for name, factor in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(factor)
    units = {g.name: [0, g.size - 1] for g in graph.select(role=["attention.group", "mlp.channel"])}
    plan = gp.PrunePlan.remove(graph, units)
    found = score(model, graph, spec(criterion), batches, gone=plan)
    small = gp.reshape(copy.deepcopy(model), plan, graph)
    left = score(small, gp.trace(gp.reshape(tiny("llama"), plan, graph)), spec(criterion), batches)
    for name, scores in found.items():
        torch.testing.assert_close(scores[list(plan.kept(name))], left[name], rtol=1e-5, atol=0)
