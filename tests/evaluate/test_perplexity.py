"""Perplexity against a direct float64 computation, and what is said about unusable text."""

import math

import pytest
import torch

from graphprune.errors import DataError, NonFiniteError
from graphprune.evaluate import perplexity, segment_losses
from tests.decoders import tiny


class Letters:
    """A tokenizer: one token per character."""

    def __call__(self, text, verbose=True):
        return {"input_ids": [ord(c) % 97 for c in text]}


TEXT = "the quick brown fox jumps over the lazy dog. " * 3


def directly(model, ids, length):
    model = model.double()
    total, count = 0.0, 0
    for start in range(0, len(ids) - length + 1, length):
        segment = ids[start : start + length]
        with torch.no_grad():
            logits = model(input_ids=segment[None]).logits[0].double()
        for t in range(1, length):
            total -= logits[t - 1, segment[t]].item() - torch.logsumexp(logits[t - 1], 0).item()
            count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("length", [2, 16, 33])
def test_against_a_direct_computation(length, batch_size):
    model = tiny("llama").train()
    ids = torch.tensor(Letters()(TEXT)["input_ids"])
    got = perplexity(model, Letters(), TEXT, length=length, batch_size=batch_size)
    assert model.training
    assert got == pytest.approx(directly(model.eval(), ids, length), rel=1e-5)


def test_text_file_and_token_ids_are_the_same(tmp_path):
    model = tiny("gpt2")
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    expected = perplexity(model, Letters(), TEXT, length=20)
    assert perplexity(model, Letters(), file, length=20) == expected
    assert perplexity(model, None, torch.tensor(Letters()(TEXT)["input_ids"])[None], length=20) == expected


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = tiny("llama")
    model.lm_head.weight.data.zero_()
    assert perplexity(model, Letters(), TEXT, length=16) == pytest.approx(97)


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        ("", 16, "is empty"),
        ("short", 16, r"has 5 tokens, fewer than one segment of 16\. Give more text, or lower the length"),
        (TEXT, 1, "at least 2 tokens"),
        (TEXT, 65, "reads at most 64 tokens at once, segments have 65"),
    ],
)
def test_unusable_text(text, length, message):
    with pytest.raises(DataError, match=message):
        perplexity(tiny("llama"), Letters(), text, length=length)


def test_missing_file_and_tokenizer(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        perplexity(tiny("llama"), Letters(), tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="without a tokenizer"):
        perplexity(tiny("llama"), None, TEXT)


def test_a_loss_that_is_not_finite_is_named():
    model = tiny("llama")
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="segment 0 is not finite"):
        perplexity(model, Letters(), TEXT, length=16)


def test_a_trained_model_on_real_text(shared_data):
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "models" / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    file = shared_data / "texts" / "tinystories" / "sample_v2gpt4_5stories.txt"
    got = perplexity(model, tokenizer, file, length=256)
    assert 3 < got < 7  # 3.67 with a start token before each story, which the protocol does not put there
    ids = torch.tensor(tokenizer(file.read_text())["input_ids"])
    assert got == pytest.approx(directly(model, ids, 256), rel=1e-4)


def test_segments_one_by_one():
    model = tiny("llama")
    ids = torch.tensor(Letters()(TEXT)["input_ids"])
    found = segment_losses(model, None, ids, length=16, batch_size=3)
    assert found.perplexity == perplexity(model, None, ids, length=16, batch_size=3)
    assert len(found.values) == len(ids) // 16
    for index in (0, 4):
        alone = perplexity(model, None, ids[index * 16 : (index + 1) * 16], length=16)
        assert math.exp(found.values[index]) == pytest.approx(alone)
