"""Time of reading and writing: what is run, how often, and that nothing of the model changes."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from graphprune.errors import DataError
from graphprune.evaluate import latency
from graphprune.evaluate.latency import Timing


@pytest.fixture
def model():
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
        max_position_embeddings=40,
    )
    return LlamaForCausalLM(config)


def test_every_trial_reads_the_prompt_and_writes_token_by_token_from_the_cache(model):
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = latency(model, prompt_tokens=8, new_tokens=3, batch_size=2, trials=2, warmup=1)
    assert lengths == [(2, 8), (2, 1), (2, 1), (2, 1)] * 3
    assert (found.prompt_tokens, found.new_tokens, found.batch_size, found.trials) == (8, 3, 2, 2)
    assert found.device == "cpu"
    assert 0 < found.prefill.smallest <= found.prefill.median <= found.prefill.largest
    assert found.decode is not None and found.decode.median > 0


def test_the_decoded_tokens_are_those_of_generate(model):
    tokens = []
    model.register_forward_pre_hook(lambda _, args, kwargs: tokens.append(kwargs["input_ids"]), with_kwargs=True)
    latency(model, prompt_tokens=8, new_tokens=4, trials=1, warmup=0)
    prompt, *new = list(tokens)
    model._forward_pre_hooks.clear()
    expected = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(torch.cat(new, dim=1), expected[:, 8:])


def test_the_prompt_is_shortened_to_what_the_model_reads(model):
    assert latency(model, prompt_tokens=2048, new_tokens=3, trials=1, warmup=0).prompt_tokens == 37


def test_no_room_for_new_tokens_is_refused(model):
    with pytest.raises(DataError, match="a model that reads 40"):
        latency(model, new_tokens=40, trials=1)


def test_a_model_that_writes_nothing_is_refused():
    tiny = BertForMaskedLM(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    with pytest.raises(DataError, match="BertForMaskedLM does not"):
        latency(tiny)


def test_training_mode_comes_back(model):
    model.train()
    latency(model, prompt_tokens=4, new_tokens=1, trials=1, warmup=0)
    assert all(module.training for module in model.modules())


def test_a_timing_is_the_median_and_the_range():
    assert Timing.of([3.0, 1.0, 5.0]) == Timing(median=3.0, smallest=1.0, largest=5.0)
