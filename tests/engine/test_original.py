"""The end of a run on a quantised base: the original weights, cut, with what was learned."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from graphprune.engine.adapters import attach
from graphprune.engine.compact import Compactor
from graphprune.engine.original import Original, Source, find_original, full_precision
from graphprune.engine.run import prune
from graphprune.errors import CheckpointError, SpecError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.schema import Lora, Quantization
from graphprune.trace import trace
from tests.decoders import tiny, tokens

pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")

WIDE = {"llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 8}, "gpt2": {"n_embd": 64, "n_inner": 128}}


@pytest.fixture(params=["llama", "gpt2"])
def original(request, tmp_path):
    model = tiny(request.param, **WIDE[request.param])
    model.save_pretrained(tmp_path / "original")
    return model


def load_packed(folder, **options):
    config = BitsAndBytesConfig(**(options or {"load_in_4bit": True}))
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def taught(model, graph, seed=0, groups=None):
    """With adapters that change the outputs."""
    groups = groups or graph.select(role=["mlp.channel", "attention.group"])
    wrapped = attach(model, graph, groups, Lora(dropout=0.0))
    values = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=values) * 0.1)
    return wrapped


@pytest.mark.parametrize("kind", ["load_in_8bit", "load_in_4bit"])
def test_what_was_learned_on_codes_is_merged_into_the_original(kind, original, tmp_path):
    graph = trace(original)
    plan = PrunePlan.remove(graph, {g.name: [1, 3] for g in graph.select(role=["mlp.channel", "attention.group"])})
    wrapped = taught(load_packed(tmp_path / "original", **{kind: True}), graph)
    found = full_precision(wrapped, plan, graph)
    expected = reshape(taught(copy.deepcopy(original), graph), plan, graph)
    with torch.no_grad():
        assert torch.equal(found(tokens()).logits, expected(tokens()).logits)
    merged, twin = (m.merge_and_unload().state_dict() for m in (found, expected))
    assert merged.keys() == twin.keys() and all(torch.equal(v, twin[k]) for k, v in merged.items())
    assert any(not p.is_floating_point() for p in wrapped.parameters())  # left as it is


def test_the_original_is_where_the_model_came_from_or_where_the_caller_says(original, tmp_path):
    packed = load_packed(tmp_path / "original")
    assert find_original(packed, None) == Source(str(tmp_path / "original"))
    (tmp_path / "original").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"is cut from its full-precision weights, but '.*original' "):
        find_original(packed, None)
    assert find_original(packed, tmp_path / "moved") == Source(str(tmp_path / "moved"))
    loaded = Source("ignored", dtype="float16", task="causal-lm", trust_remote_code=True)
    assert find_original(packed, str(tmp_path / "moved"), loaded) == Source(
        str(tmp_path / "moved"), task="causal-lm", trust_remote_code=True
    )


def test_a_model_that_does_not_say_where_it_came_from(original, tmp_path):
    packed = load_packed(tmp_path / "original")
    packed.config._name_or_path = ""
    with pytest.raises(SpecError, match=r"is quantised, .* does not say where they are .* Pass the original's folder"):
        find_original(packed, None)


def test_an_original_that_is_quantised_itself(original, tmp_path):
    packed = load_packed(tmp_path / "original")
    packed.save_pretrained(tmp_path / "codes")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "codes")
    with pytest.raises(SpecError, match=r"those in '.*codes' are quantised themselves\. Pass .* as original="):
        find_original(packed, None)


@pytest.mark.parametrize("other", [{"intermediate_size": 64}, {"num_hidden_layers": 2}])
def test_another_model_is_no_original(other, tmp_path):
    tiny("llama", **WIDE["llama"]).save_pretrained(tmp_path / "original")
    tiny("llama", **{**WIDE["llama"], **other}).save_pretrained(tmp_path / "other")
    with pytest.raises(SpecError, match=r"original: '.*other' is not the original of this Llama.*: expected 'model\."):
        find_original(load_packed(tmp_path / "original"), tmp_path / "other")


def test_damaged_weights_are_found_before_the_run(original, tmp_path):
    packed = load_packed(tmp_path / "original")
    (tmp_path / "original" / "model.safetensors").write_bytes(b"0" * 64)
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        find_original(packed, None)


def test_nothing_but_adapters_may_have_been_trained(original, tmp_path):
    graph = trace(original)
    wrapped = taught(load_packed(tmp_path / "original"), graph)
    norm = next(n for n, p in wrapped.named_parameters() if "norm" in n or "ln_" in n)
    wrapped.get_parameter(norm).requires_grad_(True)
    with pytest.raises(SpecError, match=r"nothing was trained but the adapters.* Train adapters alone"):
        full_precision(wrapped, PrunePlan.remove(graph, {}), graph)
    with pytest.raises(SpecError, match=r"expected a model with one adapter, got a .* with 0"):
        full_precision(original, PrunePlan.remove(graph, {}), graph)


@pytest.mark.parametrize("role", ["mlp.channel", "attention.group"])  # a stock config describes the first
@pytest.mark.parametrize("held", [False, True])
def test_a_base_that_was_cut_while_training_is_recognised(held, role, original, tmp_path):
    """8-bit layers can be cut in flight, and then the adapters are small already."""
    graph = trace(original)
    groups = tuple(graph.select(role=role))
    plan = PrunePlan.remove(graph, {g.name: [1, 3] for g in groups})
    source = Source(str(tmp_path / "original"))
    results = []
    for cut in (False, True):
        wrapped = taught(load_packed(source.name, load_in_8bit=True), graph, groups=groups)
        if cut:
            reshape(wrapped, plan, graph)
        options = {"held": copy.deepcopy(original)} if held else {"source": source}
        end = Original(Quantization(kind="int8"), graph, torch.device("cpu"), **options)
        results.append(full_precision(wrapped, plan, graph).merge_and_unload().state_dict())
        results.append(end.adapted(wrapped, plan, groups, Lora(dropout=0.0)).merge_and_unload().state_dict())
        assert list(wrapped.parameters()) == []  # let go of
    first = results[0]
    for other in results[1:]:
        assert first.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in first.items())


def pruned(folder, ids, compact, quantization="int8", **export):
    spec = {
        "targets": [{"role": "attention.group", "count": 1}, {"role": "mlp.channel", "ratio": 0.5}],
        "quantization": quantization,
        "lora": {"dropout": 0.0},
        "schedule": {"every": 1, "warmup": 0.0, "cooldown": 0.25},
        "training": {
            "steps": 6,
            "logging_steps": 1,
            "batch_size": 2,
            "sequence_length": 16,
            "learning_rate": 1e-2,
            "compact": compact,
        },
        "export": export,
    }
    result = prune(folder, spec, train_data=ids, progress=False)
    return result, [row["loss"] for row in result.log if "loss" in row]


@pytest.mark.parametrize("compact", ["auto", "always"])
def test_a_4_bit_base_that_is_cut_while_it_is_trained(compact, tmp_path, monkeypatch):
    """By whole blocks it is the masked one; coded anew it stays near, and the result is of the original in any case."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    whole = tiny("llama", **sizes)
    whole.save_pretrained(tmp_path / "original")
    ids = torch.randint(0, 97, (24, 16), generator=torch.Generator().manual_seed(0))
    cut, honest = [], Compactor.cut

    def watched(self, plan):
        cut.append({name.rpartition("/")[2] for name in honest(self, plan).gone.removed})
        return self.present

    monkeypatch.setattr(Compactor, "cut", watched)
    (small, losses), (masked, others) = (pruned(tmp_path / "original", ids, how, "nf4") for how in (compact, "never"))
    notes = [note for note in small.report.notes if "4" in note and "bit" in note]
    if compact == "auto":
        assert cut[-1] == {"attention.group"} and "mlp.channel is pruned by masks until the end" in notes[0]
        assert losses == pytest.approx(others, rel=1e-5) and small.plan == masked.plan
    else:
        assert cut[-1] == {"attention.group", "mlp.channel"} and len(cut) > 2
        assert notes[0].startswith("4-bit layers are coded anew of the original weights wherever mlp.channel is cut")
        assert losses == pytest.approx(others, rel=3e-2)
    expected = reshape(whole, small.plan, small.graph)
    for name, weight in small.model.named_parameters():
        assert weight.shape == expected.get_parameter(name).shape
        if "proj" not in name:
            assert torch.equal(weight, expected.get_parameter(name))


@pytest.mark.parametrize("merge", [True, False])
def test_an_int8_base_that_is_cut_while_it_is_trained_ends_like_one_under_masks(merge, tmp_path):
    tiny("llama", **WIDE["llama"]).save_pretrained(tmp_path / "original")
    ids = torch.randint(0, 97, (24, 16), generator=torch.Generator().manual_seed(0))
    (small, losses), (masked, others) = (
        pruned(tmp_path / "original", ids, compact, merge_lora=merge) for compact in ("always", "never")
    )
    assert small.plan == masked.plan and len(small.events) > 2
    assert not any("masks" in note for note in small.report.notes)
    assert losses == pytest.approx(others, rel=1e-4)
    weights = dict(masked.model.named_parameters())
    for name, weight in small.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)
