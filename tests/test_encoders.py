"""Models that are no decoders go the whole way: traced, pruned, saved, loaded; law 1 holds for them alike."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf

from graphprune.checkpoint import load, load_model, save, verify_folder
from graphprune.checkpoint.manifest import Manifest
from graphprune.engine.run import prune
from graphprune.errors import DataError, SpecError
from graphprune.evaluate import perplexity
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.report import measure
from graphprune.reshape import reshape
from graphprune.sample import output_of
from graphprune.trace import trace
from tests.decoders import tokens
from tests.encoders import image_classifier, images, seeing_decoder, text_and_image, text_classifier, translator

TEXT, IMAGES = {"input_ids": tokens()}, {"pixel_values": images()}
BOTH = {"input_ids": tokens(), "decoder_input_ids": tokens(length=6)}
KINDS = {
    "text-classifier": (text_classifier, TEXT, None),
    "image-classifier": (image_classifier, IMAGES, None),
    "translator": (translator, BOTH, None),
    "seeing-decoder": (seeing_decoder, text_and_image(2), [{"input_ids": tokens(1)}, text_and_image()]),
}
ONE_SHOT = {
    "targets": [{"role": "mlp.channel", "ratio": 0.25}],
    "criterion": "magnitude",
    "training": {"mode": "none"},
}


def some_units(graph, roles=("attention.group", "mlp.channel")):
    """A quarter of the units of every group of these roles."""
    return PrunePlan.remove(graph, {g.name: range(0, g.size, 4) for g in graph.select(role=roles)})


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_masked_equals_reshaped(kind):
    build, inputs, examples = KINDS[kind]
    model = build()
    graph = trace(model, example_inputs=examples)
    plan = some_units(graph)
    assert {g.role for g in graph if g.name in plan.removed} == {"attention.group", "mlp.channel"}
    whole = output_of(model(**inputs))
    with masked(model, plan, graph):
        expected = output_of(model(**inputs))
    small = output_of(reshape(model, plan, graph)(**inputs))
    assert (small - expected).abs().max() <= 1e-5
    assert (whole - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["text-classifier", "image-classifier", "translator"])
@torch.no_grad()
def test_saved_loaded_and_proved(kind, tmp_path):
    build, inputs, _ = KINDS[kind]
    model = build()
    graph = trace(model)
    small = reshape(model, some_units(graph, roles=["mlp.channel"]), graph)
    expected = output_of(small(**inputs))
    folder = save(small, tmp_path / "small")
    manifest = Manifest.read(folder)
    assert manifest.tier == "hf", manifest.why_not_hf
    auto = {
        "text-classifier": "AutoModelForSequenceClassification",
        "image-classifier": "AutoModelForImageClassification",
        "translator": "AutoModelForSeq2SeqLM",
    }[kind]
    assert manifest.load == f"model = transformers.{auto}.from_pretrained({str(folder)!r})"
    for loaded in (getattr(tf, auto).from_pretrained(folder), load(folder), load_model(folder)[0]):
        assert type(loaded) is type(model)
        assert torch.equal(output_of(loaded.eval()(**inputs)), expected)
    assert verify_folder(folder, inputs, expected) <= 1e-5


@torch.no_grad()
def test_heads_that_no_config_describes_come_back_through_load(tmp_path):
    model = text_classifier()
    graph = trace(model)
    small = reshape(model, some_units(graph), graph)
    folder = save(small, tmp_path / "small")
    auto = "transformers.AutoModelForSequenceClassification"
    line = f"model = {auto}.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    assert Manifest.read(folder).load == line
    again = load(folder)
    assert torch.equal(again(**TEXT).logits, small(**TEXT).logits)
    assert verify_folder(folder, TEXT, small(**TEXT).logits) <= 1e-5


@pytest.mark.parametrize("build", [text_classifier, image_classifier])
def test_the_whole_run_at_once(build, tmp_path):
    result = prune(build(), ONE_SHOT, output=tmp_path / "small")
    assert result.report.before.parameters > result.report.after.parameters
    assert result.report.before.macs > result.report.after.macs > 0
    assert result.report.before.cache_bytes == 0
    assert "a fresh process loads the folder" in " ".join(result.report.notes)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["intermediate_size"] == 30


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"training": {"mode": "joint"}},
            "training.mode joint with criterion 'magnitude' needs a loss on text, and a ",
        ),
        ({"criterion": "wanda"}, "training.mode none with criterion 'wanda' needs a loss on text"),
        ({"data": {"text": "a.txt", "evaluation": "b.txt"}}, "data.evaluation asks for a perplexity"),
    ],
)
@pytest.mark.parametrize("build", [text_classifier, image_classifier, translator])
def test_what_needs_a_next_token_is_refused_before_anything_is_read(build, changes, told):
    with pytest.raises(SpecError, match=told):
        prune(build(), ONE_SHOT | changes)


def test_perplexity_is_for_models_that_predict_the_next_token():
    with pytest.raises(DataError, match="perplexity needs a model that predicts the next token"):
        perplexity(text_classifier(), None, tokens())


def test_costs_of_an_image_are_those_of_one_image():
    small, wide = measure(image_classifier()), measure(image_classifier(intermediate_size=80))
    assert small.sequence_length == 1 and small.notes == ()
    patches, layers = 49 + 1, 3
    assert wide.macs - small.macs == layers * patches * 2 * 48 * 40
