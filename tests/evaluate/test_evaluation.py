"""One value with everything that was measured of a model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from graphprune import demo
from graphprune.evaluate import Evaluation, Questions, evaluate, perplexity
from graphprune.evaluate.evaluation import segment_length
from graphprune.report.measures import measure


@pytest.fixture
def demo_model():
    return AutoModelForCausalLM.from_pretrained(demo.model_path()), AutoTokenizer.from_pretrained(demo.model_path())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(demo.held_out_path().read_text(encoding="utf-8")[:3000], encoding="utf-8")
    return file


def test_each_part_is_what_its_function_gives_and_survives_json(demo_model, text):
    model, tokenizer = demo_model
    told = []
    questions = Questions(texts=(str(text),), length=64, latency=True, prompt_tokens=16, new_tokens=2, trials=1)
    found = evaluate(model, tokenizer, questions, step=told.append)
    assert found.perplexity == {str(text): perplexity(model, tokenizer, text, length=64, batch_size=8)}
    assert found.size == measure(model, 16)
    assert found.latency is not None and found.latency.prompt_tokens == 16
    assert found.latency_unmerged is None
    assert [s.name for s in found.stages] == told[:2] == [f"perplexity on {text}", "latency"]
    assert found.peak_bytes == max(s.peak_rss_bytes for s in found.stages)
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_an_infinite_perplexity_survives_json(demo_model):
    found = evaluate(*demo_model, Questions()).model_copy(update={"perplexity": {"a": float("inf")}})
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_adapters_are_timed_in_both_forms_and_left_as_they_were(demo_model):
    model, _ = demo_model
    before = {name: p.clone() for name, p in model.named_parameters()}
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    merged = []
    wrapped.register_forward_pre_hook(
        lambda *_: merged.append(next(m.merged for m in wrapped.modules() if hasattr(m, "lora_A")))
    )
    found = evaluate(wrapped, None, Questions(latency=True, prompt_tokens=4, new_tokens=1, trials=1))
    assert merged == [False] * 4 + [True] * 4  # warm-up and trial, each a prompt and a token
    assert found.latency is not None and found.latency_unmerged is not None
    for name, p in wrapped.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, before[name.replace(".base_layer", "")])
    assert found.size.parameters == measure(model).parameters


def test_segments_are_as_long_as_papers_have_them_or_as_the_model_reads(demo_model):
    config = demo_model[0].config
    assert segment_length(config) == 256
    config.max_position_embeddings = 100_000
    assert segment_length(config) == 2048
