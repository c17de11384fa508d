"""The bundled decoder has learned something, is small enough for a wheel, and its texts do not leak."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from graphprune.demo import calibration_path, held_out_path, model_path

CONTEXT = 256


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_path(), local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path(), local_files_only=True)


def test_package_data_is_complete_and_below_8_MB():
    folder = model_path().parent
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in model_path().iterdir()} == names
    assert {path.name for path in folder.glob("*.*")} >= {
        *("README.md", "LICENSE-CPython.txt", "calibration.txt", "held_out.txt"),
    }
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6
    assert 200_000 < calibration_path().stat().st_size < 300_000
    assert 40_000 < held_out_path().stat().st_size < 60_000


def test_grouped_query_attention_and_sizes_that_survive_halving(model):
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert config.hidden_size % (config.num_attention_heads // 2) == 0
    assert config.to_dict()["head_dim"] == config.head_dim == 24  # explicit, so that it stays when heads go
    assert config.tie_word_embeddings
    halved = type(config)(**{**config.to_dict(), "num_attention_heads": 4, "num_key_value_heads": 2})
    assert AutoModelForCausalLM.from_config(halved).model.layers[0].self_attn.q_proj.out_features == 4 * 24


def test_stored_in_half_precision_and_loaded_in_single(model):
    assert model.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, parameter.half().float()), name


def test_tokenizer_is_lossless_and_has_a_separator(tokenizer, model):
    text = held_out_path().read_text(encoding="utf-8")[:5000] + "\n\tnaïve – 漢字 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.config.eos_token_id == 0
    assert tokenizer(tokenizer.eos_token)["input_ids"] == [0]
    assert len(tokenizer) == model.config.vocab_size


@torch.no_grad()
def test_perplexity_on_held_out_text_proves_training(model, tokenizer):
    text = held_out_path().read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)[::4]  # a quarter is enough, and quick
    logits = model(input_ids=windows).logits[:, :-1]
    targets = windows[:, 1:].reshape(-1)
    perplexity = cross_entropy(logits.flatten(0, 1), targets).exp().item()
    # What knowing only the frequency of every token would give, on the same targets.
    frequencies = targets.bincount(minlength=len(tokenizer)).double() / len(targets)
    unigram = math.exp(torch.special.entr(frequencies).sum().item())
    assert perplexity < 13
    assert perplexity < unigram / 10


def test_card_states_the_size_and_the_perplexity(model):
    card = (model_path().parent / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,}-parameter" in card
    assert "perplexity on `held_out.txt`" in card


def test_held_out_text_is_not_in_the_calibration_text():
    calibration = calibration_path().read_text(encoding="utf-8")
    held_out = held_out_path().read_text(encoding="utf-8")
    length = 120
    seen = {calibration[i : i + length] for i in range(len(calibration) - length)}
    assert not [i for i in range(len(held_out) - length) if held_out[i : i + length] in seen]


@pytest.mark.parametrize("path", [calibration_path, held_out_path])
def test_texts_carry_no_licence_but_pythons(path, demo_text):
    assert demo_text.is_psf_only(path().read_text(encoding="utf-8"))


@pytest.fixture
def demo_text(repository: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools"))
    return pytest.importorskip("demo_text")


@pytest.fixture
def recipe(demo_text):
    return pytest.importorskip("train_demo_model")


def test_a_foreign_copyright_line_excludes_a_file(demo_text):
    assert demo_text.is_psf_only("# Copyright (C) 2001-2006 Python Software Foundation\n")
    assert demo_text.is_psf_only("a file without any notice\n")
    assert not demo_text.is_psf_only("# Copyright (c) 1999 by Somebody Else\n")
    assert not demo_text.is_psf_only("# SPDX-License-Identifier: MIT\n")


def test_whole_files_are_held_out_by_name(demo_text):
    document = demo_text.Document("http/client.py", "one")
    assert document.held_out
    assert demo_text.Document("http/client.py", "other").held_out
    assert not demo_text.Document("topic:http/client.py", "one").held_out


def test_take_keeps_documents_whole_and_within_the_limit(demo_text):
    documents = [demo_text.Document(str(i), text) for i, text in enumerate(["aaaa", "bbbbbbbb", "ccc", "dd"])]
    assert demo_text.take(documents, limit=6, longest=5) == "aaaa\ndd"


def test_a_resumed_run_sees_the_same_batches(recipe):
    tokens = torch.arange(20_000)
    through = list(recipe.batches(tokens, seed=3, start=0, steps=10))
    resumed = list(recipe.batches(tokens, seed=3, start=6, steps=10))
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(through[6:], resumed))
    assert through[0].shape == (recipe.BATCH_SIZE, recipe.CONTEXT + 1)
    assert (through[0].diff(dim=1) == 1).all()


def test_learning_rate_warms_up_and_ends_at_two_percent(recipe):
    rates = [recipe.learning_rate(step, 1000) for step in range(1001)]
    assert max(rates) == rates[recipe.WARMUP_STEPS] == recipe.PEAK_LEARNING_RATE
    assert rates[-1] == pytest.approx(0.02 * recipe.PEAK_LEARNING_RATE)
