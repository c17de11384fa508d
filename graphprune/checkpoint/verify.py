"""The proof that a folder is what it should be: a fresh process loads it as promised and gives the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import graphprune
from graphprune import processes
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import CheckpointError
from graphprune.tasks import loader_name

_STOCK = """
sys.modules["graphprune"] = None  # importing it fails from here on
import transformers
loader = getattr(transformers, sys.argv[4])
trust = {"trust_remote_code": True} if sys.argv[5] == "hf-remote-code" else {}
model, info = loader.from_pretrained(folder, dtype="auto", output_loading_info=True, **trust)
problems = {key: found for key, found in info.items() if found}
assert not problems, problems
"""
_OWN = """
import graphprune
model = graphprune.load(folder)
"""
_COMPARE = """
with torch.no_grad():
    outputs = model.to(device).eval()(**{name: tensor.to(device) for name, tensor in given.items()})
answer = outputs["logits"] if "logits" in outputs else outputs[0]
safetensors.torch.save_file({"logits": answer.float().cpu().contiguous()}, files + "/answer.safetensors")
"""
_HEAD = """
import sys, torch, safetensors.torch
folder, files, device = sys.argv[1:4]
given = safetensors.torch.load_file(files + "/question.safetensors")
"""


def verify_folder(
    folder: str | os.PathLike[str],
    inputs: torch.Tensor | Mapping[str, Any],
    expected_logits: torch.Tensor,
    *,
    tolerance: float | None = None,
    timeout: float = 1800.0,
) -> float:
    """Loads ``folder`` in a new Python process, as its manifest says, and compares logits.

    A folder of tier ``hf`` is loaded without graphprune. The process has no network.

    Args:
        folder: written by :func:`graphprune.save`.
        inputs: token ids of shape (batch, length), or the tensors that the model takes, by name.
        expected_logits: of the model in memory, for a decoder of shape (batch, length, vocabulary); the first output
            of a model without logits. The fresh process computes on the same kind of device.
        tolerance: how far logits may be apart; by default 1e-3 of their largest magnitude, 5e-2 for 16-bit weights.
        timeout: seconds until the process is given up.

    Returns:
        the largest absolute difference of a logit.

    Raises:
        CheckpointError: if the folder does not load, or the logits are further apart.
    """
    path = Path(folder).expanduser().absolute()
    expected = expected_logits.detach().float().cpu()
    manifest = Manifest.read(path)
    script = _HEAD + (_OWN if manifest.tier == "graphprune" else _STOCK) + _COMPARE
    named = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else inputs
    question = {n: t.detach().cpu().contiguous() for n, t in named.items() if isinstance(t, torch.Tensor)}
    with tempfile.TemporaryDirectory(prefix="graphprune-") as files:
        save_file(question, Path(files) / "question.safetensors")
        package = str(Path(graphprune.__file__).parents[1])
        search = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**processes.environment_alone(), "PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", script, str(path), files, expected_logits.device.type]
        command += [_loader(path, manifest), manifest.tier]
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and script
                command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{path} did not load in a fresh process within {timeout:.0f} s") from None
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise CheckpointError(f"{path} does not load in a fresh process:\n{last}")
        got = load_file(Path(files) / "answer.safetensors")["logits"]
    if got.shape != expected.shape:
        raise CheckpointError(f"{path} gives logits of shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    distance = (got - expected).abs().max().item()
    if tolerance is None:
        tolerance = (1e-3 if expected_logits.dtype == torch.float32 else 5e-2) * expected.abs().max().item()
    if not distance <= tolerance:
        raise CheckpointError(
            f"{path} gives other logits in a fresh process than the model in memory: they differ by up to "
            f"{distance:.3g}, more than {tolerance:.3g}. The folder must not be used; please report this."
        )
    return distance


def _loader(folder: Path, manifest: Manifest) -> str:
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    return loader_name(manifest.architecture, kind)
