"""Ctrl-C in a real process, while training, while writing and while proving: law 5, and a message."""

import os
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


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_leaves_nothing_behind(place, tmp_path):
    """The signal goes to the whole process group, as a terminal sends it."""
    tiny("llama").save_pretrained(tmp_path / "model")
    letters().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    (tmp_path / "spec.yaml").write_text(JOINT.replace("steps: 4", f"steps: {100_000 if place == 'training' else 2}"))
    before = contents(tmp_path)
    command = [sys.executable, "-c", DRIVER, PLACES[place]]
    command += ["prune", "model", "spec.yaml", "--data", "text.txt", "--out", "new/small", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for _ in range(3 if place == "training" else 1):
            assert process.stdout.readline() == "HERE\n"
        if place != "training":
            assert list((tmp_path / "new").glob(".small.*.partial/model.safetensors")), "interrupted before writing"
        if place == "proving":
            time.sleep(1)  # the fresh process is importing
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: nothing half-written remains"
    assert "Traceback" not in errors
    assert contents(tmp_path) == before
