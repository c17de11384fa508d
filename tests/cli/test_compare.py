"""``graphprune compare``, on a tiny decoder."""

import json
import re
import shlex

import pytest

from graphprune import demo
from graphprune.study import report
from graphprune.study.results import Results

STUDY = """
title: A small one
spec:
  targets: [{role: mlp.channel, ratio: 0.5}]
  schedule: {every: 1}
  training: {steps: 3, batch_size: 2, sequence_length: 16, calibration_batches: 2}
  export: {targets: [graphprune]}
vary:
  criterion: [magnitude, taylor]
  ratio: [0.25, 0.5]
seeds: 2
"""


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(demo.calibration_path().read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return file


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def compared(run, study, little, text, tmp_path):
    """Runs the study with more options, one-shot and of one seed unless told otherwise."""

    def call(*more, folder="out", report=False):
        options = ("--model", little, "--text", text, "--device", "cpu", "--set", "training.mode=none")
        quiet = () if report else ("--no-report",)
        return run("compare", study, "--out", tmp_path / folder, *options, *quiet, *more)

    return call


def test_a_study_is_run_told_and_goes_on(compared, tmp_path, text):
    result = compared("--seeds", 2)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "little, perplexity" in lines and "criterion ratio 0.25 ratio 0.5" in lines
    number = r"[\d,.]+ ± [\d,.]+"
    assert any(re.fullmatch(rf"magnitude {number} {number}", line) for line in lines)
    assert lines[-1] == f"wrote {tmp_path / 'out'}"
    assert "[8/8] seed 1, little, taylor, 0.5: perplexity" in result.stderr
    found = Results.read(tmp_path / "out")
    assert found.study.data.text == str(text) and found.study.models["little"] and len(found.cells) == 8
    again = compared("--seeds", "0,1,2", "--dry-run")
    assert "12 cells, 12 runs, 4 to run; time: " in again.stdout
    assert f"{found.cells[0].key:<17} done     seed 0, little, magnitude, 0.25" in again.stdout
    assert again.stdout.count("to run   seed 2") == 4


def test_options_are_laid_over_the_study(compared, tmp_path, text):
    options = ("--seeds", 1, "--steps", 1, "--set", "training.mode=joint", "--set", "lora={r: 2}", "--evaluation", text)
    assert compared(*options).exit_code == 0
    (cell, *_) = Results.read(tmp_path / "out").cells
    assert cell.spec["training"]["mode"] == "joint" and cell.spec["training"]["steps"] == 1
    assert cell.spec["lora"]["r"] == 2 and cell.spec["data"]["evaluation"] == str(text)


def test_the_command_of_a_cell_repeats_it_alone(compared, run, tmp_path, monkeypatch):
    compared("--seeds", 1)
    cell = Results.read(tmp_path / "out").cells[2]
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(cell.command)
    assert program == "graphprune"
    result = run(*arguments, "--no-report")
    assert result.exit_code == 0, result.output
    (again,) = Results.read(tmp_path / "again").cells
    assert again.key == cell.key and again.groups == cell.groups and again.segments == cell.segments
    assert "3 cells have not been run" in result.stdout


def test_failed_cells_are_told_and_retried(compared, tmp_path, monkeypatch):
    from graphprune.study import cell

    with monkeypatch.context() as patched:
        patched.setattr(cell, "evaluate", lambda *a, **k: 1 / 0)
        result = compared("--seeds", 1)
    assert result.exit_code == 0
    assert "failed: seed 0, little, magnitude, 0.25: ZeroDivisionError: division by zero (key " in result.stdout
    assert "0 to run" in compared("--seeds", 1, "--dry-run").stdout
    assert compared("--seeds", 1, "--retry").exit_code == 0
    assert {c.status for c in Results.read(tmp_path / "out").cells} == {"done"}


def test_the_report_is_written_at_the_end(compared, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(report, "check_installed", lambda: None)
    monkeypatch.setattr(report, "write_report", lambda results, folder: written.append((len(results.cells), folder)))
    assert compared("--seeds", 1, report=True).exit_code == 0
    assert written == [(4, tmp_path / "out")]


def test_what_the_report_needs_is_looked_for_first(refused, study, little, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    told = refused("compare", study, "--out", tmp_path / "out", "--model", little)
    assert "the report of a study needs the package" in told and "or pass --no-report" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seeds", "few"], "--seeds: 1 problem\n  - expected a number of seeds (3) or seeds (0,1,2), got 'few'"),
        (["--set", "steps"], "--set: 1 problem\n  - expected PATH=VALUE, such as lora.r=4, got 'steps'"),
        (["--set", "ratio=0.5"], "ratio: was to be 0.5, but the study varies it: axis 'ratio'"),
        (["--set", "training.stepz=3"], "all cells: training.stepz: unknown key. Did you mean 'steps'?"),
        (["--set", "targets.7.count=3"], "targets.7.count: expected '*' or one of 1 items in 'targets', got '7'"),
        (["--text", "nowhere.txt"], "no text file at nowhere.txt"),
        (["--model", "no/such/folder"], "model folder: expected a model as a hub id, a local folder"),
        (["--only", "abc"], "no cell has the key 'abc'"),
    ],
)
def test_refusals(options, told, run, study, little, text, tmp_path):
    given = [] if "--model" in options else ["--model", little]
    given += [] if "--text" in options else ["--text", text]
    result = run("compare", study, "--out", tmp_path / "out", "--no-report", "--device", "cpu", *given, *options)
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_a_study_may_be_a_dictionary_in_json(run, little, text, tmp_path):
    wanted = {
        "title": "t",
        "spec": {"targets": [{"role": "mlp.channel", "count": 1}]},
        "vary": {"criterion": ["random"]},
    }
    file = tmp_path / "study.json"
    file.write_text(json.dumps(wanted))
    options = ("--model", f"mine={little}", "--set", "training={mode: none, sequence_length: 16}", "--dry-run")
    result = run("compare", file, "--out", tmp_path / "out", "--text", text, *options)
    assert "seed 2, mine, random" in result.stdout, result.output
