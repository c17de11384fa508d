"""``graphprune eval``, on the bundled demo decoder."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from graphprune import demo
from graphprune.evaluate import perplexity


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The first part of the held-out text."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(demo.held_out_path().read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return file


def test_it_prints_and_writes_what_was_measured(run, text, tmp_path):
    file = tmp_path / "scores.json"
    result = run("eval", demo.model_path(), "--text", text, "--length", 64, "--device", "cpu", "--json", file)
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(demo.model_path())
    expected = perplexity(model, AutoTokenizer.from_pretrained(demo.model_path()), text, length=64, batch_size=8)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"perplexity, text.txt, 64 tokens {expected:.3f}" in lines
    assert f"parameters {model.num_parameters():,}" in lines
    (written,) = json.loads(file.read_text(encoding="utf-8"))
    assert written["perplexity"] == {str(text): expected}


def test_models_are_compared_at_a_length_that_all_read(run, text, little):
    result = run("eval", demo.model_path(), little, "--text", text, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "perplexity, text.txt, 48 tokens" in result.stdout


def test_an_adapter_is_timed_in_both_forms(run, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(demo.model_path())
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    small = ("--latency", "--prompt", 4, "--new-tokens", 1, "--trials", 1, "--device", "cpu")
    result = run("eval", demo.model_path(), "--adapter", tmp_path / "adapter", *small)
    assert result.exit_code == 0, result.output
    assert "reading 4 tokens, ms " in result.stdout
    assert "reading 4 tokens, ms, adapters unmerged" in result.stdout


def test_a_folder_that_is_no_adapter_is_refused(refused, tmp_path):
    assert "has no adapter_config.json" in refused("eval", demo.model_path(), "--adapter", tmp_path, "--device", "cpu")


def test_an_adapter_for_several_models_is_refused(refused, tmp_path):
    assert "belongs to one model" in refused("eval", demo.model_path(), demo.model_path(), "--adapter", tmp_path)


def test_a_file_that_exists_is_not_overwritten(refused, tmp_path):
    (tmp_path / "scores.json").write_text("mine")
    assert "exists already" in refused("eval", demo.model_path(), "--json", tmp_path / "scores.json")
    assert (tmp_path / "scores.json").read_text() == "mine"


def test_a_missing_text_is_told_before_anything_is_loaded(refused, tmp_path):
    told = refused("eval", "no/such/model", "--text", tmp_path / "nowhere.txt")
    assert "no text file at" in told
    assert "loading" not in told


def test_a_text_that_is_too_short_is_refused(refused, tmp_path):
    (tmp_path / "short.txt").write_text("def f")
    told = refused("eval", demo.model_path(), "--text", tmp_path / "short.txt", "--length", 128, "--device", "cpu")
    assert "fewer than one segment of 128" in told


def test_segments_longer_than_the_model_reads_are_refused(refused, text):
    assert "reads at most 256 tokens" in refused("eval", demo.model_path(), "--text", text, "--length", 300)


def test_a_model_that_is_not_there_is_named(refused, text, tmp_path):
    assert "no such folder or file" in refused("eval", tmp_path / "nowhere", "--text", text)
