"""What models are traced with: their own kind of inputs, or what they are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BatchEncoding

from graphprune.errors import TraceError
from graphprune.trace import trace
from graphprune.trace.inputs import Call, calls_of, default_call
from tests.decoders import tiny
from tests.encoders import image_classifier, seeing_decoder, text_and_image, text_classifier, translator


class Plain(nn.Module):
    """A residual block on features, outside of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, features, scale, *, offset=None):
        return features + self.down(torch.relu(self.up(features))) * scale


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (lambda: tiny("llama"), {"input_ids": (1, 11)}),
        (text_classifier, {"input_ids": (1, 11)}),
        (image_classifier, {"pixel_values": (1, 3, 28, 28)}),
        (lambda: image_classifier(image_size=(28, 16), num_channels=1), {"pixel_values": (1, 1, 28, 16)}),
        (translator, {"input_ids": (1, 11), "decoder_input_ids": (1, 7)}),
        (seeing_decoder, {"input_ids": (1, 11)}),
    ],
)
def test_a_model_is_asked_for_its_inputs(build, shapes):
    model = build()
    call = default_call(model)
    assert {name: tuple(t.shape) for name, t in call.tensors()} == shapes
    assert set(call.kwargs) - set(shapes) <= {"use_cache"}
    model(**call.kwargs)


def test_images_are_made_in_the_type_of_the_weights():
    assert default_call(image_classifier().to(torch.bfloat16)).kwargs["pixel_values"].dtype == torch.bfloat16


def test_a_forward_whose_inputs_nobody_knows_is_refused_with_their_names():
    with pytest.raises(
        TraceError, match=r"inputs of Plain cannot be made up: its forward takes features, scale, offset"
    ):
        trace(Plain())
    with pytest.raises(TraceError, match=r"the shape of features, scale is not known. Pass example_inputs, such as"):
        trace(Plain())


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        ({"features": torch.ones(2, 6)}, r"missing a required argument: 'scale'.* Given were features \(2, 6\)"),
        ((torch.ones(2, 6), 1.0, 2.0), "too many positional arguments"),
        ({"features": torch.ones(2, 6), "scale": 1.0, "speed": 3}, "unexpected keyword argument 'speed'"),
        ([], "expected at least one example"),
        (torch.ones(2, 6), "expected keyword arguments as a mapping, positional ones as a tuple.* got Tensor"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples, told):
    with pytest.raises(TraceError, match=told):
        trace(Plain(), example_inputs=examples)


def test_positional_and_keyword_examples_give_the_same_graph():
    x = torch.ones(2, 6)
    assert trace(Plain(), example_inputs=(x, 0.5)) == trace(Plain(), example_inputs={"features": x, "scale": 0.5})


def test_what_a_tokenizer_gives_is_an_example():
    ids = torch.zeros(1, 11, dtype=torch.long)
    encoding = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    graph = trace(text_classifier(), example_inputs=encoding)
    assert len(graph.select(role="attention.group")) == len(graph.select(role="mlp.channel")) == 3


def test_values_of_examples_do_not_matter():
    def graph(fill):
        return trace(text_classifier(), example_inputs={"input_ids": torch.full((1, 9), fill)})

    assert graph(3) == graph(90)


def test_numbers_that_are_given_are_activations():
    """As constants they would be forked at every module, and no weight would be seen to consume them."""
    graph = trace(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)), example_inputs=(torch.ones(3, 6),))
    (inner,) = [g for g in graph.groups if g.size == 10]
    assert [(m.tensor, m.dim, m.consumes) for m in inner.members] == [
        ("0.weight", 0, False),
        ("0.bias", 0, False),
        ("2.weight", 1, True),
    ]
    (given,) = [g for g in graph.groups if any(m.tensor == "0.weight" and m.dim == 1 for m in g.members)]
    assert given.frozen == "it is an axis of the input 'input'"
    assert [m.consumes for m in given.members] == [True]


def test_an_embedding_that_is_given_keeps_its_width():
    given = {"inputs_embeds": torch.ones(1, 11, 48), "use_cache": False}
    graph = trace(tiny("llama"), example_inputs=given)
    assert graph.untraced == ("model.embed_tokens.weight",)
    assert "it is an axis of the input 'inputs_embeds'" in graph.by_name["hidden"].frozen
    assert len(graph.select(role="attention.group")) == len(graph.select(role="mlp.channel")) == 3


def test_nested_tensors_are_changed_and_named():
    call = Call(kwargs={"features": {"a": torch.ones(2), "b": [torch.ones(3)]}, "flag": True})
    assert [name for name, _ in call.tensors()] == ["features.a", "features.b.0"]
    assert [tuple(t.shape) for _, t in call.map(lambda t: t[None]).tensors()] == [(1, 2), (1, 3)]
    assert str(call) == "features.a (2,), features.b.0 (3,), flag=True"


class TwoWays(nn.Module):
    """Two branches into one head: with one input, half of the model is not met."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.sound, self.inner, self.head = (
            nn.Linear(n, m) for n, m in ((6, 10), (7, 10), (10, 14), (14, 3))
        )

    def forward(self, text=None, sound=None):
        x = self.text(text) if sound is None else self.sound(sound)
        return self.head(torch.relu(self.inner(torch.relu(x))))


def test_several_examples_make_one_graph():
    text, sound = {"text": torch.ones(2, 6)}, {"sound": torch.ones(3, 7)}
    alone = trace(TwoWays(), example_inputs=text)
    assert alone.untraced == ("sound.bias", "sound.weight")
    both = trace(TwoWays(), example_inputs=[text, sound])
    assert both.untraced == ()
    (shared,) = [g for g in both.groups if g.size == 10]
    assert {m.tensor for m in shared.members} == {
        "text.weight", "text.bias", "sound.weight", "sound.bias", "inner.weight"
    }  # fmt: skip
    sites = [(s.kind, s.module) for g in both.groups if g.size == 14 for s in g.sites]
    assert sites == [("input", "head")]


def test_text_alone_traces_the_text_and_reports_the_rest():
    graph = trace(seeing_decoder())
    assert [(g.layer, g.size) for g in graph.select(role="attention.group")] == [(i, 4) for i in range(3)]
    assert all(name.startswith(("model.vision_tower.", "model.multi_modal_projector.")) for name in graph.untraced)
    assert "model.vision_tower.encoder.layers.1.mlp.fc1.weight" in graph.untraced
    tower = [g for g in graph.groups if not g.stacks and any("vision" in m.tensor for m in g.members)]
    assert tower and all(g.frozen for g in tower)


def test_text_and_image_are_traced_into_one_graph():
    text = {"input_ids": torch.zeros(1, 11, dtype=torch.long)}
    graph = trace(seeing_decoder(), example_inputs=[text, text_and_image()])
    assert graph.untraced == ()
    assert [(g.layer, g.size) for g in graph.select(role="mlp.channel")] == [(i, 40) for i in range(3)]
    heads = graph.select(role="attention.group")
    assert sorted((g.layer is not None, g.size) for g in heads) == [(False, 4)] * 2 + [(True, 4)] * 3
    tied = {m.tensor for m in graph.by_name["hidden"].members}
    assert {"model.multi_modal_projector.linear_2.weight", "model.language_model.embed_tokens.weight"} <= tied
    assert any(note.startswith("traced on tensors with values") for note in graph.notes)


def test_one_list_of_examples_is_one_call_each():
    calls = calls_of(Plain(), [(torch.ones(2, 6), 1.0), {"features": torch.ones(3, 6), "scale": 2.0}])
    assert [str(c) for c in calls] == ["features (2, 6), scale=1.0", "features (3, 6), scale=2.0"]


class Generating(nn.Module):
    """Generation asks for a branch that a plain pass leaves alone."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.embed, self.query = nn.Embedding(20, 6), nn.Parameter(torch.ones(6))
        self.up, self.down, self.head = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 20)
        self.fails = fails

    def forward(self, input_ids, mapping=None):
        x = self.embed(input_ids)
        if mapping is not None and self.fails:
            raise ValueError("another day")
        x = x if mapping is None else x + self.query * mapping[..., None]
        return self.head(x + self.down(torch.relu(self.up(x))))

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None):
        return {"input_ids": input_ids, "mapping": torch.ones(input_ids.shape), "attention_mask": attention_mask}


def test_the_branch_that_generation_asks_for_is_traced_too():
    model = Generating()
    assert [sorted(dict(c.tensors())) for c in calls_of(model, None)] == [["input_ids"], ["input_ids", "mapping"]]
    graph = trace(model)
    assert graph.untraced == ()
    assert any({"query", "embed.weight"} <= {m.tensor for m in group.members} for group in graph.groups)
    assert trace(Generating(fails=True)).untraced == ("query",)


def test_a_model_that_generates_from_its_token_ids_alone_is_called_with_no_more():
    assert [sorted(call.kwargs) for call in calls_of(tiny("llama"), None)] == [["input_ids", "use_cache"]] * 2
