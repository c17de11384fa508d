"""``graphprune prune``."""

import shlex

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
    rows = {role: (row["groups"], row["removed"], row["of"]) for role, row in plan.summary().items()}
    assert rows == {"attention.group": (3, 6, 12), "mlp.channel": (3, 60, 120)}
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


def test_without_the_extra_a_quantised_base_is_refused_before_anything_is_loaded(
    run, tiny, spec, tmp_path, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("graphprune.cli.models.structure", None)
    result = run("prune", tiny, spec(ONE_SHOT + "quantization: int8\n"), "--out", tmp_path / "small", "--device", "cpu")
    assert result.exit_code == 2 and not (tmp_path / "small").exists()
    assert "pip install 'graphprune[bitsandbytes]'" in " ".join(result.stderr.split())


def test_a_quantised_base_is_cut_from_its_own_weights(run, tiny, spec, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    text = ONE_SHOT + "quantization: int8\n"
    result = run("prune", tiny, spec(text), "--out", tmp_path / "small", "--device", "cpu", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    report = Report.read(tmp_path / "small" / "report.json")
    assert "scored and tuned on the base in int8; the result is cut from the weights of" in report.notes[0]
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto")
    whole = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    kept = PrunePlan.load(tmp_path / "small" / "plan.json").kept("model.layers.0.mlp/mlp.channel")
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(small.get_parameter(up), whole.get_parameter(up)[list(kept)])


@pytest.fixture
def interrupted(run, spec, tmp_path, monkeypatch):
    """Arguments of a run that was interrupted after the last of its three steps, and what it said."""
    arguments = ["prune", demo.model_path(), spec(TUNED.replace("steps: 3", "steps: 3, save_every: 2"))]
    arguments += ["--data", demo.calibration_path(), "--out", tmp_path / "small", "--device", "cpu"]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("graphprune.engine.modes.merge", interrupt)
        patched.setattr("sys.argv", ["graphprune", *map(str, arguments)])
        result = run(*arguments)
    assert result.exit_code == 130, result.output
    return arguments, result.stderr


@pytest.mark.slow
def test_an_interrupted_run_says_which_command_continues_it(interrupted, run, refused, spec, tmp_path):
    arguments, told = interrupted
    *_, state, command = told.splitlines()
    assert state.startswith(f"interrupted. The unfinished run in {tmp_path / 'small.run'} is at step 3 of 3.")
    assert command == "    " + shlex.join(["graphprune", *map(str, arguments), "--resume"])
    # Not by accident, and not with another spec; before the model is loaded.
    for extra, message in (([], "holds an unfinished run, at step 3 of 3"), (["--resume", "--seed", "8"], "got 8")):
        told = refused(*arguments, *extra)
        assert message in told
        assert "tracing" not in told
    result = run(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing the run in" in result.stderr
    assert "- interrupted and continued at step 3 of 3; the times are those of the last part" in result.stdout
    assert not (tmp_path / "small.run").exists()
    result = run(*arguments, "--resume")
    assert result.exit_code == 0
    assert result.stdout == f"this run is finished: {tmp_path / 'small'} holds its result\n"


def test_resume_of_a_run_that_keeps_no_state_runs(run, tiny, spec, tmp_path):
    result = run("prune", tiny, spec(ONE_SHOT), "--out", tmp_path / "small", "--device", "cpu", "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "small" / "model.safetensors").is_file()
