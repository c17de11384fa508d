"""Inputs, distances, copies and generated text of a model under proof."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from graphprune.errors import GraphPruneError
from graphprune.prove import subject
from graphprune.prove.instance import check_memory, random_instance
from graphprune.prove.steps import Subject
from graphprune.prove.subject import Generated
from tests.decoders import config, tiny, tokens

INF = float("inf")


@pytest.mark.parametrize(
    ("left", "right", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([-INF, 1.0], [-INF, 1.0], 0.0),
        ([-INF], [0.0], INF),
        ([float("nan")], [0.0], INF),
    ],
)
def test_distance(left, right, apart):
    assert subject.distance(torch.tensor(left), torch.tensor(right)) == apart


def test_logits_of_other_shapes_are_no_logits_to_compare():
    with pytest.raises(GraphPruneError, match=r"expected logits of shape \(2,\), got \(3,\)"):
        subject.distance(torch.zeros(2), torch.zeros(3))


def test_the_longest_window_is_known():
    assert subject.window(tiny("gemma2")) == 8 and subject.window(tiny("llama")) == 0


def test_a_twin_shares_tensors_until_they_are_replaced():
    model = tiny("llama-tied-bias")
    twin = subject.twin(model)
    assert twin.config is not model.config and twin.lm_head is not model.lm_head
    assert twin.lm_head.weight is model.lm_head.weight is twin.get_input_embeddings().weight


def test_the_own_rounding_is_small_and_not_zero():
    model, inputs = tiny("llama"), {"input_ids": tokens()}
    with torch.no_grad():
        dense = subject.logits_of(model, inputs)
        found = subject.rounding(model, inputs, dense, 0)
        assert 0 < found < 1e-5 * subject.magnitude(dense)
        assert torch.equal(subject.logits_of(model, inputs), dense)


def test_text_may_part_only_at_a_tie():
    model, inputs = tiny("llama"), {"input_ids": tokens(batch=1)}
    with torch.no_grad():
        dense = subject.logits_of(model, inputs)
        text = subject.generated(model, inputs, cache=True)
    asked = Subject(model, None, inputs, dense, 0, 1e-5)
    parted = text.tokens.clone()
    parted[0, -2:] += 1
    assert asked.same_text(text, text)
    assert asked.same_text(text, Generated(parted, text.logits))
    after = text.logits.clone()
    after[-1] += 1  # behind another token anything may come
    assert asked.same_text(text, Generated(parted, after))
    assert not asked.same_text(text, Generated(text.tokens, after))
    assert not asked.same_text(text, Generated(text.tokens[:, :-1], text.logits[:-1]))


def test_a_random_instance_has_no_constant_parameter():
    model = random_instance(config("llama-tied-bias"))
    assert all(p.std() > 0 for p in model.parameters())
    assert model.dtype == torch.float32 and not model.training


def test_a_proof_that_does_not_fit_is_refused():
    with pytest.raises(GraphPruneError, match=r"'big' needs about 12\.0 GB .* 1\.0 GB are free.*make it smaller"):
        check_memory(nn.Linear(1000, 1_000_000, bias=False, device="meta"), "big", available=10**9)


def test_errors_are_told_in_one_line():
    assert subject.told(ValueError("wrong\nsee there")) == "ValueError: wrong"
    assert subject.told(ValueError("two things are wrong:\n  the first\n  the second")) == (
        "ValueError: two things are wrong: the first"
    )
    assert subject.told(ValueError()) == "ValueError"


class Remembering(nn.Module):
    """Keeps a state as wide as its weight in itself, and goes on with it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.state = None

    def forward(self, x):
        self.state = self.weight * 1 if self.state is None else self.state + self.weight
        return x[:, None] * self.state

    def generate(self, x, **_):
        logits = torch.stack([self(x) for _ in range(2)])
        return SimpleNamespace(sequences=logits.argmax(-1), logits=tuple(logits))


def test_no_state_of_a_pass_stays_for_the_copy_that_is_cut_next():
    model, x = Remembering(), torch.ones(2)
    first = subject.logits_of(model, {"x": x})
    assert torch.equal(subject.logits_of(model, {"x": x}), first)
    text = subject.generated(model, {"x": x}, cache=True)
    assert not torch.equal(text.logits[0], text.logits[1])
    assert model.state is None and subject.twin(model).state is None
