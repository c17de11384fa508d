"""gp.prune on a quantised base, from end to end."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from graphprune.checkpoint import load
from graphprune.checkpoint.greedy import continuation
from graphprune.engine import original as original_module
from graphprune.engine import run as run_module
from graphprune.engine.callback import PruneCallback
from graphprune.engine.original import Source
from graphprune.engine.run import prune
from graphprune.errors import CriterionError, SpecError
from graphprune.packed import packed_kinds
from graphprune.reshape import reshape
from tests.decoders import tiny

pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 8}
TARGETS = [{"role": "attention.group", "count": 2}, {"role": "mlp.channel", "ratio": 0.25}]


def make_spec(mode="joint", **rest):
    training = {"mode": mode, "steps": 4, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-2}
    return {
        "targets": TARGETS,
        "criterion": {"name": "lora", "average": 0.5},
        "training": {**training, **rest.pop("training", {})},
        "schedule": {"every": 1, "warmup": 0.0, "cooldown": 0.3},
        "quantization": "nf4",
        **rest,
    }


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids of shape (80, 16)."""
    return torch.randint(0, 97, (80, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def original():
    return tiny("llama", **SIZES)


@pytest.fixture
def checkpoint(original, tmp_path):
    original.save_pretrained(tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch):
    """The same proof as verify_folder gives, without the seconds that a fresh process takes to start."""

    def verify(folder, inputs, expected_logits, text):
        loaded = load(folder)
        with torch.no_grad():
            distance = (loaded(**inputs).logits - expected_logits).abs().max().item()
        assert distance < 1e-5
        assert torch.equal(continuation(loaded, inputs).tokens, text.tokens)
        return distance

    monkeypatch.setattr(run_module, "verify_folder", verify)


def packed(checkpoint, kind="nf4"):
    config = BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind != "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    return AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_the_result_is_cut_from_the_original_weights(mode, kind, original, checkpoint, tokens, tmp_path):
    """Without a step of learning to speak of, it is the original without the units, not what codes left of it."""
    spec = make_spec(mode, quantization=kind, training={"learning_rate": 1e-12})
    result = prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    expected = reshape(original, result.plan, result.graph).state_dict()
    found = result.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(value, expected[name], rtol=0, atol=1e-8) for name, value in found.items())
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(stock(tokens[:2]).logits, result.model(tokens[:2]).logits)
    assert {len(units) for units in result.plan.removed.values()} == {2, 32}


@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_a_folder_a_model_and_a_quantised_model_give_the_same(mode, original, checkpoint, tokens, tmp_path):
    results = []
    for model, spec in (
        (checkpoint, make_spec(mode)),
        (copy.deepcopy(original), make_spec(mode)),
        (packed(checkpoint), make_spec(mode, quantization=None)),
        (packed(checkpoint), make_spec(mode)),
    ):
        results.append(prune(model, spec, train_data=tokens, progress=False))
        assert packed_kinds(results[-1].model) == ()
    first = results[0]
    for other in results[1:]:
        assert other.plan == first.plan and other.report.perplexity_tuned == first.report.perplexity_tuned
        assert (other.report.before, other.report.after) == (first.report.before, first.report.after)
        assert other.report.perplexity_before == first.report.perplexity_before
        for name, value in other.model.state_dict().items():
            assert torch.equal(value, first.model.state_dict()[name])


@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_adapters_learn_on_the_codes_and_end_in_the_weights(mode, checkpoint, tokens):
    result = prune(checkpoint, make_spec(mode, training={"steps": 12}), train_data=tokens, progress=False)
    whole = AutoModelForCausalLM.from_pretrained(checkpoint)
    cut = reshape(whole, result.plan, result.graph).state_dict()
    changed = [n for n, v in result.model.state_dict().items() if not torch.allclose(v, cut[n], atol=1e-4)]
    assert len(changed) == 3 * 7 and all("proj" in name for name in changed)
    losses = [row["loss"] for row in result.log if "loss" in row]
    assert losses


def test_adapters_can_be_kept_apart(original, checkpoint, tokens, tmp_path):
    spec = make_spec(export={"merge_lora": False})
    result = prune(checkpoint, spec, train_data=tokens, output=tmp_path / "small", progress=False)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "small").state_dict()
    expected = reshape(original, result.plan, result.graph).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in base.items())
    assert (tmp_path / "small" / "adapter" / "adapter_config.json").is_file()


def test_the_checkpoints_own_dtype_is_kept(original, checkpoint, tokens):
    original.to(torch.bfloat16).save_pretrained(checkpoint)
    result = prune(checkpoint, make_spec(), train_data=tokens, progress=False)
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert result.report.before.weight_bytes == 2 * result.report.before.parameters


@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_there_is_one_model_in_memory_at_a_time(mode, checkpoint, tokens, monkeypatch):
    alive = []
    honest_load, honest_job = Source.load, run_module.Job

    def spying_load(self, device=None):
        alive.append([sum(p.numel() for p in model.parameters()) for model in jobs])
        return honest_load(self, device)

    def spying_job(**options):
        jobs.append(options["model"])
        return honest_job(**options)

    jobs: list[torch.nn.Module] = []
    monkeypatch.setattr(original_module.Source, "load", spying_load)
    monkeypatch.setattr(run_module, "Job", spying_job)
    prune(checkpoint, make_spec(mode), train_data=tokens, progress=False)
    assert alive == [[], [0]] + ([[0]] if mode == "separate" else [])


def test_a_model_of_the_callers_is_quantised_in_a_copy(original, tokens, monkeypatch):
    before = copy.deepcopy(original.state_dict())

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("graphprune.engine.modes.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(original, make_spec(), train_data=tokens, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    monkeypatch.undo()
    assert prune(original, make_spec("none"), train_data=tokens, progress=False).model is original


def test_a_quantised_model_of_the_callers_stays_as_it_is(checkpoint, tokens):
    model = packed(checkpoint, "int8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    prune(model, make_spec(quantization=None), train_data=tokens, progress=False)
    assert trainable == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[n]) for n, v in before.items())


def test_the_report_says_what_its_numbers_are_of(original, checkpoint, tokens):
    report = prune(checkpoint, make_spec(), train_data=tokens, progress=False).report
    assert report.notes[-1] == (
        "scored and tuned on the base in nf4, double quantisation; the result is cut from the weights of "
        f"{checkpoint} in their own precision, and all sizes and perplexities are of these"
    )
    assert report.spec["quantization"] == {"kind": "nf4", "double": True, "skip_modules": None}
    names = [stage.name for stage in report.stages]
    assert names == "load/trace/read text/evaluate/quantise/train/reshape/evaluate/merge/evaluate".split("/")
    plain = prune(checkpoint, make_spec(quantization=None), train_data=tokens, progress=False).report
    assert (report.before, report.after) == (plain.before, plain.after)
    assert report.perplexity_before == plain.perplexity_before


def test_what_contradicts_itself_is_refused(original, checkpoint, tokens):
    with pytest.raises(SpecError, match=r"quantization: asks for int8, and this Llama.* is quantised to nf4 already"):
        prune(packed(checkpoint), make_spec(quantization="int8"), train_data=tokens, progress=False)
    with pytest.raises(SpecError, match="original: expected with a model that is quantised already"):
        prune(original, make_spec(), original=checkpoint, train_data=tokens, progress=False)
    with pytest.raises(SpecError, match="criterion: 'taylor' needs gradients of weights, which a base in nf4 does not"):
        prune(checkpoint, make_spec(criterion="taylor"), train_data=tokens, progress=False)
    with pytest.raises(CriterionError, match="needs gradients of weights"):
        prune(packed(checkpoint), make_spec(criterion="taylor", quantization=None), train_data=tokens, progress=False)
    spec = make_spec(quantization={"kind": "nf4", "skip_modules": PROJECTIONS})
    with pytest.raises(SpecError, match="quantization: expected linear layers that can be quantised to nf4 on cpu"):
        prune(checkpoint, spec, train_data=tokens, progress=False)


PROJECTIONS = ["k_proj", "v_proj", "q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_cut_widths_that_cannot_be_quantised_are_tuned_as_they_are(checkpoint, tokens):
    """On a CPU 4-bit layers want inputs in multiples of 64: after the cut no layer but the MLPs' has any."""
    spec = make_spec("separate", quantization={"kind": "nf4", "skip_modules": PROJECTIONS[:3] + PROJECTIONS[4:6]})
    assert prune(checkpoint, spec, train_data=tokens, progress=False).report.perplexity_tuned is not None


def test_a_trainer_of_ones_own(checkpoint, tokens, tmp_path):
    """The callback on a quantised base; the smaller model is made of the original afterwards."""
    from torch.utils.data import StackDataset
    from transformers import Trainer, TrainingArguments

    from graphprune.engine.adapters import attach, trace_without_adapters
    from graphprune.engine.original import full_precision
    from graphprune.schema import Lora

    model = packed(checkpoint)
    graph = trace_without_adapters(model)
    wrapped = attach(model, graph, graph.select(role=["attention.group", "mlp.channel"]), Lora())
    callback = PruneCallback(make_spec(quantization=None))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, use_cpu=True, report_to="none"
    )
    data = StackDataset(input_ids=tokens, labels=tokens)
    Trainer(model=wrapped, args=arguments, train_dataset=data, callbacks=[callback]).train()
    small = full_precision(wrapped, callback.plan, callback.graph).merge_and_unload()
    assert small.config.intermediate_size == 96 and packed_kinds(small) == ()
    assert all(parameter.isfinite().all() for parameter in small.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_on_an_accelerator(mode, kind, checkpoint, tokens, tmp_path):
    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
    result = prune(checkpoint, make_spec(mode, quantization=kind), train_data=tokens, progress=False)
    assert next(result.model.parameters()).device.type == torch.accelerator.current_accelerator().type
    expected = reshape(AutoModelForCausalLM.from_pretrained(checkpoint), result.plan, result.graph)
    embedding = result.model.get_input_embeddings().weight.cpu()
    assert torch.equal(embedding, expected.get_input_embeddings().weight)
