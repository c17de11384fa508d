"""``graphprune prune``."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from graphprune import demo
from graphprune.checkpoint import load_model
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.report import Report

ONE_SHOT = """
targets: [{role: [attention.group, mlp.channel], ratio: 0.5}]
criterion: magnitude
training: {mode: none}
"""
TUNED = """
targets: [{role: mlp.channel, ratio: 0.5}]
training: {steps: 3, batch_size: 2, sequence_length: 32}
schedule: {every: 1}
"""


@pytest.fixture
def spec(tmp_path):
    """Writes a spec file."""

    def write(text):
        (tmp_path / "spec.yaml").write_text(text)
        return tmp_path / "spec.yaml"

    return write


def test_a_model_is_pruned_without_text_and_loads_as_printed(run, tiny, spec, tmp_path):
    result = run("prune", tiny, spec(ONE_SHOT), "--out", tmp_path / "small", "--seed", 7, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "# Pruning report" in result.stdout
    assert f"AutoModelForCausalLM.from_pretrained('{tmp_path / 'small'}')" in result.stdout.splitlines()[-1]
    plan = PrunePlan.load(tmp_path / "small" / "plan.json")
    assert plan.summary() == {
        "attention.group": {"groups": 3, "removed": 6, "of": 12},
        "mlp.channel": {"groups": 3, "removed": 60, "of": 120},
    }
    assert Report.read(tmp_path / "small" / "report.json").seed == 7
    model, small = (AutoModelForCausalLM.from_pretrained(f) for f in (tiny, tmp_path / "small"))
    tokens = torch.arange(1, 14)[None]
    with torch.no_grad(), masked(model, plan):
        torch.testing.assert_close(small(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_model_is_tuned_on_a_text(run, spec, tmp_path):
    out = tmp_path / "small"
    result = run("prune", demo.model_path(), spec(TUNED), "--data", demo.calibration_path(), "--out", out)
    assert result.exit_code == 0, result.output
    assert "100.0% of the target, removed 1536 mlp.channel" in result.stderr, "a line per prune event"
    report = Report.read(out / "report.json")
    assert report.perplexity_tuned is not None
    assert report.after.parameters < report.before.parameters
    small, tokenizer = load_model(out)
    assert small.config.intermediate_size == 256
    assert tokenizer("def f")["input_ids"]


@pytest.mark.parametrize(
    ("text", "extra", "told"),
    [
        (TUNED, ["--data", "nowhere.txt"], "no text file at nowhere.txt"),
        (TUNED + "data: {text: nowhere.txt}", [], "no text file at nowhere.txt"),
        (TUNED, [], "Give --data FILE, or a data section in the spec"),
        (ONE_SHOT, ["--device", "abacus"], "expected a device of this machine, got 'abacus'"),
        (ONE_SHOT.replace("ratio:", "layers: 7, ratio:"), [], "layer 7 does not exist"),
        (ONE_SHOT + "typo: 1", [], "unknown key"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_model_is_loaded(refused, tiny, spec, tmp_path, text, extra, told):
    message = refused("prune", tiny, spec(text), "--out", tmp_path / "small", *extra)
    assert told in message
    assert "loading" not in message
    assert not (tmp_path / "small").exists()


def test_a_folder_with_something_in_it_is_refused_first(refused, spec, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    message = refused("prune", "no/such/model", spec(ONE_SHOT), "--out", tmp_path)
    assert "is not empty (2 entries, such as 'mine.txt')" in message
    assert "tracing" not in message
