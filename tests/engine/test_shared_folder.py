"""``graphprune prune`` in two processes: one of them writes, and the result is that of one process."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import graphprune
from graphprune.cli import app
from graphprune.engine.run_folder import RunFolder
from graphprune.engine.shared_folder import SharedFolder
from graphprune.plan import PrunePlan
from tests.engine import together

DEMO = Path(graphprune.__file__).parent / "demo"


def write_spec(folder, criterion="lora", **training):
    usual = {
        "mode": "joint",
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 1,
        "sequence_length": 32,
        "save_every": 2,
    }
    spec = {
        "targets": [{"role": "attention.group", "count": 1}, {"role": "mlp.channel", "ratio": 0.5}],
        "criterion": criterion,
        "schedule": {"every": 2, "warmup": 0.0, "cooldown": 0.2},
        "lora": {"dropout": 0.0, "r": 4},
        "training": {**usual, **training},
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))


def command(out, *more):
    data = str(DEMO / "calibration.txt")
    return ["prune", str(DEMO / "model"), "spec.yaml", "--out", out, "--data", data, *more]


def in_two(folder, out, *more, **options):
    return together.started(folder, "-m", "graphprune", *command(out, *more), **options)


def in_one(folder, out, monkeypatch):
    monkeypatch.chdir(folder)
    found = CliRunner().invoke(app, command(out))
    assert found.exit_code == 0, found.output


def assert_same(folder, first, second, **tolerance):
    assert (folder / first / "plan.json").read_bytes() == (folder / second / "plan.json").read_bytes()
    weights, other = (load_file(folder / name / "model.safetensors") for name in (first, second))
    torch.testing.assert_close(weights, other, **tolerance)


def test_one_process_alone_has_the_folder_itself(tmp_path):
    folder = SharedFolder(RunFolder(tmp_path / "small.run"))
    assert folder.path == tmp_path / "small.run" and not folder.worth and folder.start() is None
    folder.path.mkdir()
    plan = PrunePlan(fingerprint="f", sizes={"g": 2}, removed={"g": (1,)})
    folder.keep_pruned(plan, {"g": torch.ones(2)})
    assert folder.worth
    kept = folder.pruned()
    assert kept is not None and kept[0] == plan
    folder.remove()
    assert not folder.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "criterion", "mode"),
    [("accelerate", "lora", "joint"), ("torchrun", "taylor", "separate"), ("torchrun", "wanda", "none")],
)
def test_two_processes_write_what_one_writes(launcher, criterion, mode, tmp_path, monkeypatch):
    write_spec(tmp_path, criterion, mode=mode)
    done = in_two(tmp_path, "two", launcher=launcher)
    assert done.returncode == 0, done.stderr
    in_one(tmp_path, "one", monkeypatch)
    assert_same(tmp_path, "one", "two", rtol=1e-3, atol=1e-4)
    assert done.stdout.count("wrote two") == 1 and done.stderr.count("loading") == 1
    assert "computed by 2 processes" in (tmp_path / "two" / "report.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "spec.yaml", "two"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_two_processes_is_resumed(number, tmp_path):
    write_spec(tmp_path, steps=12)
    assert in_two(tmp_path, "whole").returncode == 0
    process = together.start(tmp_path, "-m", "graphprune", *command("broken"))
    run = tmp_path / "broken.run"
    until = time.monotonic() + 200
    while not (run / "checkpoint-2" / "complete.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    if number == signal.SIGTERM:
        assert "Continue it with --resume" in said
        assert not list(run.glob("checkpoint-*/*.partial"))
    done = wait_for_death(tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, "whole", "broken", rtol=0, atol=0)
    assert not run.exists()


def wait_for_death(folder):
    """The resumed run; processes whose launcher was killed hold the folder until they notice, and are waited for."""
    for _ in range(20):
        done = in_two(folder, "broken", "--resume")
        if "another process works on the run" not in done.stderr:
            break
        time.sleep(3)
    return done


@pytest.mark.slow
def test_what_is_refused_ends_both_processes(tmp_path):
    write_spec(tmp_path, batch_size=3)
    done = in_two(tmp_path, "two")
    assert done.returncode != 0
    assert "training.batch_size: expected a multiple of 2 for 2 processes" in done.stderr
    write_spec(tmp_path)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine").touch()
    done = in_two(tmp_path, "two")
    assert done.returncode != 0
    assert done.stderr.count("is not empty") == 1
    assert not (tmp_path / "two.run").exists()


@pytest.mark.slow
def test_a_divergence_ends_both_processes_and_keeps_the_step_before(tmp_path):
    write_spec(tmp_path, learning_rate=1e30, max_grad_norm=0, lr_scheduler="constant")
    done = in_two(tmp_path, "two")
    assert done.returncode != 0
    assert "is NaN or infinite at step" in done.stderr
    assert "Lower training.learning_rate" in done.stderr
    assert (tmp_path / "two.run" / "diverged.txt").is_file()
