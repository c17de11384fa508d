"""The benchmarks for GPUs, tried without one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
SMALL = ["--device", "cpu", "--size", "tiny", "--dtype", "float32"]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("benchmark_of_gpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    for name in ("gpu_models", "gpu_scenarios", "gpu_checks"):
        sys.modules.pop(name, None)


def run(gpu: ModuleType, *words: str) -> Any:
    return CliRunner().invoke(gpu.app, list(words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["cost", "large", "latency", "correctness"])
def test_without_a_gpu_every_command_says_so(gpu, command):
    result = run(gpu, command)
    assert result.exit_code == 2
    assert "needs a CUDA device, got none" in result.output and "--device cpu --size tiny" in result.output


def test_what_does_not_fit_is_a_line_of_the_table(gpu, monkeypatch, tmp_path):
    """The others are measured all the same, ratios are to what was measured, and the paper's numbers stand beside."""
    seconds = {"plain": 2.0, "lora": 3.0}

    def child(command: list[str], **_: Any) -> Any:
        name = json.loads(command[-1])["scenario"]
        known = {"seconds": seconds.get(name), "allocated": 2**20, "host": 1}
        found = {"error": "out of memory", "detail": "tried 1 GiB"} if name == "taylor" else known
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    monkeypatch.setattr(subprocess, "run", child)
    result = run(gpu, "cost", *SMALL, "--scenarios", "taylor,plain,lora", "--json", str(tmp_path / "found.json"))
    assert result.exit_code == 0, result.output
    lines = {line.split("|")[1].strip(): line for line in result.output.splitlines() if line.startswith("| ")}
    assert "out of memory" in lines["taylor"] and "38.87" in lines["taylor"]
    assert lines["lora"].split("|")[2:5] == [" 3 ", " 1.50 ", "  "]
    assert "| LoRA-guided | 14.13 | 0.36 | 18.3 | 0.47 |" in lines["lora"]
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept["machine"]["device"] == "cpu" and kept["rows"]["lora"]["seconds"] == 3.0


def test_what_fails_is_reported_and_the_others_run(gpu, monkeypatch):
    def child(command: list[str], **_: Any) -> Any:
        if json.loads(command[-1])["ratio"] == 0.2:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no such thing")
        times = {"prefill": 1.0, "decode": 0.1}
        return subprocess.CompletedProcess(command, 0, json.dumps({"merged": times, "unmerged": times}), "")

    monkeypatch.setattr(subprocess, "run", child)
    result = run(gpu, "latency", *SMALL)
    assert result.exit_code == 1
    assert "| 20 % | failed: ValueError: no such thing" in result.output
    assert "| 50 % | 1.0000 s (1.00)" in result.output


def test_the_host_running_out_of_memory_is_no_failure(gpu, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9, "", ""))
    result = run(gpu, "large", *SMALL)
    assert result.exit_code == 0 and "killed by signal 9" in result.output and "72 G" in result.output


def test_unknown_names_are_refused(gpu):
    assert "expected one of tiny" in run(gpu, "cost", "--size", "9b").output
    assert run(gpu, "cost", *SMALL, "--scenarios", "lora,fine").exit_code == 2


@pytest.mark.parametrize("kind", ["none", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_tuning_is_measured(gpu, kind):
    """What a child does, in this process: scored steps in the engine's own loop."""
    if kind != "none":
        pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    import gpu_scenarios

    options = {"size": "tiny", "dtype": "float32", "batch": 2, "micro_batch": 1, "length": 16, "device": "cpu"}
    options |= {"steps": 2, "warmup": 1, "checkpointing": False, "scenario": "lora" if kind == "none" else "lora-int8"}
    found = gpu_scenarios.tuning(options)
    assert found["groups"] == 4 and 0 < found["least"] <= found["seconds"] <= found["most"]
    assert found["allocated"] >= found["weights"] > 0


def test_the_quantised_model_has_no_matrix_in_full_precision(gpu):
    """It is built layer by layer, and everything of it has values."""
    pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    import gpu_models

    from graphprune.engine.quantise import settings_of

    config = gpu_models.config_of("tiny")
    model = gpu_models.build(config, gpu_models.traced(config), torch.device("cpu"), torch.float32, "int8")
    assert settings_of(model).kind == "int8"
    wide = [n for n, p in model.named_parameters() if p.is_floating_point() and p.ndim == 2]
    assert wide == ["model.embed_tokens.weight", "lm_head.weight"]
    assert model(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()


def test_checks_can_fail(gpu, monkeypatch):
    import gpu_checks

    monkeypatch.setitem(gpu_checks.ROUNDING, "float32", -1.0)
    result = run(gpu, "correctness", *SMALL[:4], "--only", "masked equals reshaped, float")
    assert result.exit_code == 1
    assert "| masked equals reshaped, float32 | FAILED | AssertionError: off by" in result.output
    assert "| masked equals reshaped, float16 | ok |" in result.output


def test_pruned_models_answer_with_adapters_and_without(gpu):
    import gpu_scenarios

    options = {"size": "tiny", "dtype": "float32", "length": 16, "tokens": 2, "device": "cpu", "vocabulary": 256}
    found = [gpu_scenarios.answering({**options, "trials": 1, "warmup": 0, "ratio": r}) for r in (0, 0.5)]
    assert found[1]["parameters"] < found[0]["parameters"]
    assert all(row[way][what] > 0 for row in found for way in ("unmerged", "merged") for what in ("prefill", "decode"))


@pytest.mark.slow
def test_everything_runs_end_to_end_in_processes_of_its_own(tmp_path):
    options = {
        "cost": ["--batch", "2", "--length", "16", "--steps", "2", "--scenarios", "plain,lora,taylor", *SMALL],
        "latency": ["--length", "16", "--tokens", "2", "--trials", "2", "--warmup", "1", "--ratios", "0,50", *SMALL],
        "correctness": SMALL[:4],
    }
    for command, words in options.items():
        done = subprocess.run([sys.executable, SCRIPT, command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "measured without a GPU" in done.stdout
