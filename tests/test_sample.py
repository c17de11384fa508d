"""A small question to any model, and its answer."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from graphprune.sample import output_of, sample_inputs, vocabulary
from tests.decoders import tiny
from tests.encoders import image_classifier, text_classifier, translator


@pytest.mark.parametrize(
    ("build", "shapes", "answer"),
    [
        (lambda: tiny("llama"), {"input_ids": (1, 8)}, (1, 8, 97)),
        (text_classifier, {"input_ids": (1, 8)}, (1, 5)),
        (image_classifier, {"pixel_values": (1, 3, 28, 28)}, (1, 5)),
        (translator, {"input_ids": (1, 8), "decoder_input_ids": (1, 8)}, (1, 8, 97)),
    ],
)
def test_a_model_is_asked_and_answers(build, shapes, answer):
    model = build()
    inputs = sample_inputs(model)
    assert {n: tuple(t.shape) for n, t in inputs.items() if isinstance(t, torch.Tensor)} == shapes
    with torch.no_grad():
        first, again = (output_of(model(**given)) for given in (inputs, sample_inputs(model)))
    assert tuple(first.shape) == answer and torch.equal(first, again)


def test_tokens_differ_and_are_known_to_the_model():
    model = tiny("llama")
    ids = sample_inputs(model, length=40)["input_ids"]
    assert len(set(ids.flatten().tolist())) == 40
    assert vocabulary(model) == 97 and int(ids.max()) < 97


def test_of_several_embeddings_the_smallest_says_which_tokens_all_know():
    model = tiny("llama")
    model.set_input_embeddings(nn.ModuleList([nn.Embedding(97, 4), nn.Embedding(20, 4)]))
    assert vocabulary(model) == 20


def test_an_answer_is_the_logits_or_what_comes_first():
    x, y = torch.ones(2), torch.zeros(3)
    assert output_of(x) is x
    assert output_of(CausalLMOutput(loss=y, logits=x)) is x
    assert output_of(BaseModelOutput(last_hidden_state=x, hidden_states=(y,))) is x
    assert output_of(((x, y), y)) is x
