"""Models that are no decoders, through the command line; and structures from a config file alone."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForSequenceClassification

from tests.encoders import image_classifier, text_classifier

ONE_SHOT = "targets: [{role: mlp.channel, ratio: 0.25}]\ncriterion: magnitude\ntraining: {mode: none}\n"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "classifier"
    text_classifier().save_pretrained(folder)
    return folder


@pytest.fixture
def spec(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(ONE_SHOT)
    return file


@pytest.fixture
def nameless(tmp_path):
    """A config file of an image classifier that does not say what it is for."""
    config = image_classifier().config.to_dict() | {"architectures": None}
    (tmp_path / "images.json").write_text(json.dumps(config))
    return tmp_path / "images.json"


def test_a_config_file_is_enough_to_trace(run, tiny):
    from_folder, from_file = run("trace", tiny), run("trace", tiny / "config.json")
    assert from_file.exit_code == 0, from_file.output
    assert from_file.stdout == from_folder.stdout


@pytest.mark.parametrize("name", ["nowhere.json", "spec.yaml"])
def test_a_file_that_is_no_config_is_refused(refused, spec, name):
    told = refused("trace", spec.parent / name)
    assert "expected a model as a hub id, a local folder or a config file, got" in told


def test_what_a_model_is_for_can_be_said(run, refused, nameless):
    assert "Say what the model is for with --task" in refused("trace", nameless)
    result = run("trace", nameless, "--task", "image-classification")
    assert result.exit_code == 0, result.output
    assert "attention.group" in result.stdout
    assert "not for 'causal-lm'" in refused("trace", nameless, "--task", "causal-lm")
    assert "Did you mean 'image-classification'?" in refused("trace", nameless, "--task", "image-clasification")


def test_a_classifier_is_pruned_at_once(run, classifier, spec, tmp_path):
    result = run("prune", classifier, spec, "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert "transformers.AutoModelForSequenceClassification.from_pretrained" in result.stdout
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert small.config.intermediate_size == 30
    applied = run("apply", classifier, tmp_path / "small" / "plan.json", "--out", tmp_path / "again", "--no-prove")
    assert applied.exit_code == 0, applied.output
    assert "mlp.channel" in run("trace", tmp_path / "again").stdout


@pytest.mark.parametrize("verb", ["validate", "prune"])
def test_training_a_classifier_on_text_is_refused_before_weights_are_read(refused, classifier, spec, tmp_path, verb):
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())  # and no weights
    (tmp_path / "text.txt").write_text("text " * 100)
    spec.write_text(ONE_SHOT.replace("none", "joint").replace("magnitude", "lora"))
    order = [spec, tmp_path] if verb == "validate" else [tmp_path, spec, "--data", tmp_path / "text.txt"]
    told = refused(verb, *order, *(["--out", tmp_path / "small"] if verb == "prune" else []))
    assert "training.mode joint with criterion 'lora' needs a loss on text, and a" in told
    assert "does not predict the next token. Use training: {mode: none}" in told


def test_a_classifier_has_no_perplexity(refused, classifier, tmp_path):
    (tmp_path / "text.txt").write_text("text " * 100)
    told = refused("eval", classifier, "--text", tmp_path / "text.txt")
    assert "perplexity needs a model that predicts the next token" in told


def test_the_first_spec_of_a_classifier_fits_it(run, classifier, tmp_path):
    result = run("init", classifier, "--out", tmp_path / "first.yaml")
    assert result.exit_code == 0, result.output
    assert "--data" not in result.stdout
    text = (tmp_path / "first.yaml").read_text()
    assert "criterion: {name: magnitude}" in text and "training: {mode: none}" in text and "--data" not in text
    assert run("validate", tmp_path / "first.yaml", classifier).exit_code == 0


def test_a_classifier_is_proved(run, classifier):
    result = run("trace", classifier, "--prove")
    assert result.exit_code == 0, result.output
    assert "Proved on its own weights" in result.stdout
