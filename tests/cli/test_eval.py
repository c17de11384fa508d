"""``graphprune eval``, on the bundled demo decoder."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from graphprune import demo
from graphprune.evaluate import perplexity


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The first part of the held-out text."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(demo.held_out_path().read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return file


def test_it_prints_the_perplexity(run, text):
    result = run("eval", demo.model_path(), "--text", text, "--length", 64, "--device", "cpu")
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(demo.model_path())
    expected = perplexity(model, AutoTokenizer.from_pretrained(demo.model_path()), text, length=64)
    words = result.stdout.split()
    assert float(words[1]) == pytest.approx(expected, abs=1e-3)
    assert f"{model.num_parameters():,} parameters" in result.stdout


def test_a_missing_text_is_told_before_anything_is_loaded(refused, tmp_path):
    told = refused("eval", "no/such/model", "--text", tmp_path / "nowhere.txt")
    assert "no text file at" in told
    assert "loading" not in told


def test_a_text_that_is_too_short_is_refused(refused, tmp_path):
    (tmp_path / "short.txt").write_text("def f")
    told = refused("eval", demo.model_path(), "--text", tmp_path / "short.txt", "--device", "cpu")
    assert "fewer than one segment of 128" in told


def test_segments_longer_than_the_model_reads_are_refused(refused, text):
    assert "reads at most 256 tokens" in refused("eval", demo.model_path(), "--text", text, "--length", 300)


def test_a_model_that_is_not_there_is_named(refused, text, tmp_path):
    assert "no model folder at" in refused("eval", tmp_path / "nowhere", "--text", text)
