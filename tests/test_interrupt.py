"""Ctrl-C in a real process, while training, while writing and while proving: law 5, and a message."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.decoders import tiny
from tests.test_bad_input import JOINT, contents, letters

# The real command line; it only says when it has come to the place, and there waits for the signal.
DRIVER = """
import importlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
import torch
torch.set_num_threads(1)
from graphprune.cli import main
module, name, method, waits = sys.argv.pop(1).split(":")
owner = getattr(importlib.import_module(module), name)
honest = getattr(owner, method)
def marked(*arguments, **options):
    result = honest(*arguments, **options)
    print("HERE", flush=True)
    time.sleep(float(waits))
    return result
setattr(owner, method, marked)
main()
"""
PLACES = {
    "training": "graphprune.engine.pruner:Pruner:score:0.02",
    "saving": "graphprune.report.report:Report:save:60",
    "proving": "graphprune.checkpoint.manifest:Manifest:read:0",
}


ARGUMENTS = ["prune", "model", "spec.yaml", "--data", "text.txt", "--out", "new/small", "--device", "cpu"]


def started(folder, place, *arguments):
    """The command line in ``folder``, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, place, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_leaves_nothing_behind(place, tmp_path):
    """The signal goes to the whole process group, as a terminal sends it."""
    lay_out(tmp_path, f"steps: {100_000 if place == 'training' else 2}")
    before = contents(tmp_path)
    with started(tmp_path, PLACES[place], *ARGUMENTS) as process:
        for _ in range(3 if place == "training" else 1):
            assert process.stdout.readline() == "HERE\n"
        if place != "training":
            assert list((tmp_path / "new").glob(".small.*.partial/model.safetensors")), "interrupted before writing"
        if place == "proving":
            time.sleep(1)  # the fresh process is importing
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    # Only what was trained is left, and the command that goes on with it.
    told, again = errors.splitlines()[-2:]
    assert told.startswith(f"interrupted. The unfinished run in {tmp_path / 'new' / 'small.run'} is at step ")
    assert again == f"    graphprune {shlex.join(ARGUMENTS)} --resume"
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["small.run"]
    shutil.rmtree(tmp_path / "new")
    assert contents(tmp_path) == before


def lay_out(folder, steps):
    tiny("llama").save_pretrained(folder / "model")
    letters().save_pretrained(folder / "model")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    (folder / "spec.yaml").write_text(JOINT.replace("steps: 4", steps))


@pytest.mark.slow
def test_terminated_killed_and_resumed_is_as_if_undisturbed(tmp_path):
    """SIGTERM, as a cluster sends it before the time is up; then kill -9; the last process proves what it writes."""
    lay_out(tmp_path, "steps: 14, save_every: 2")
    out = tmp_path / "new" / "small"
    ends = []
    for number, calls in ((signal.SIGTERM, 3), (signal.SIGKILL, 5), (None, 0)):
        with started(tmp_path, PLACES["training"], *ARGUMENTS, "--resume") as process:
            for _ in range(calls):
                assert process.stdout.readline() == "HERE\n"
            if number is not None:
                os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=120)
        ends.append(process.returncode)
    assert ends == [143, -9, 0], errors
    assert "continuing the run in" in errors
    assert [entry.name for entry in out.parent.iterdir()] == ["small"]
    weights, plan = ((out / name).read_bytes() for name in ("model.safetensors", "plan.json"))
    shutil.rmtree(out)
    with started(tmp_path, PLACES["training"], *ARGUMENTS) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "plan.json").read_bytes() == plan
