"""The proof that a folder is what it should be: a fresh process loads it as promised and answers alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import graphprune
from graphprune import processes
from graphprune.checkpoint.greedy import SETTINGS, Continuation, continuation
from graphprune.checkpoint.manifest import Manifest
from graphprune.errors import CheckpointError
from graphprune.names import bare
from graphprune.sample import output_of, sample_inputs
from graphprune.tasks import loader_name


@dataclass(frozen=True)
class Question:
    """What is asked of a folder.

    Attributes:
        folder: written by :func:`graphprune.save`.
        inputs: tensors of its forward pass, by name.
        prompt: what it continues, by name; nothing where it is not asked to.
    """

    folder: Path
    inputs: Mapping[str, Any]
    prompt: Mapping[str, Any] = field(default_factory=dict)


_SCRIPT = """
import json, sys, torch, safetensors.torch
told = json.loads(sys.argv[1])
if told["without"]:
    sys.modules["graphprune"] = None  # importing it fails from here on
import transformers


def loaded(job):
    if job["tier"] == "graphprune":
        import graphprune
        return graphprune.load(job["folder"])
    loader = getattr(transformers, job["loader"])
    trust = {"trust_remote_code": True} if job["tier"] == "hf-remote-code" else {}
    model, info = loader.from_pretrained(job["folder"], dtype="auto", output_loading_info=True, **trust)
    problems = {key: found for key, found in info.items() if found}
    assert not problems, problems
    return model


def answer(job):
    model = loaded(job).to(told["device"]).eval()
    given = {"inputs": {}, "prompt": {}}
    for name, tensor in safetensors.torch.load_file(job["question"]).items():
        part, _, name = name.partition(".")
        given[part][name] = tensor.to(told["device"])
    with torch.no_grad():
        outputs = model(**given["inputs"])
    said = outputs["logits"] if "logits" in outputs else outputs[0]
    answers = {"logits": said.float()}
    if given["prompt"]:
        made = model.generate(**given["prompt"], **told["settings"])
        answers |= {"tokens": made.sequences, "steps": torch.stack(made.logits).float()}
    return {name: tensor.cpu().contiguous() for name, tensor in answers.items()}


for job in told["jobs"]:
    try:
        safetensors.torch.save_file(answer(job), job["answer"])
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=open(job["answer"] + ".error", "w"))
"""


def verify_folder(
    folder: str | os.PathLike[str],
    inputs: torch.Tensor | Mapping[str, Any],
    expected_logits: torch.Tensor,
    text: Continuation | str = "",
    *,
    tolerance: float | None = None,
    timeout: float = 1800.0,
) -> float:
    """Loads ``folder`` in a new Python process, as its manifest says, and compares logits and text.

    A folder of tier ``hf`` or ``hf-remote-code`` is loaded where graphprune cannot be imported. The process has no
    network.

    Args:
        folder: written by :func:`graphprune.save`.
        inputs: token ids of shape (batch, length), or the tensors that the model takes, by name.
        expected_logits: of the model in memory, for a decoder of shape (batch, length, vocabulary); the first output
            of a model without logits. The fresh process computes on the same kind of device.
        text: what the model in memory generates; nothing is generated where it is a reason why it does not.
        tolerance: how far logits may be apart; by default 1e-3 of their largest magnitude, 5e-2 for 16-bit weights.
        timeout: seconds until the process is given up.

    Returns:
        the largest absolute difference of a logit, in what is generated too.

    Raises:
        CheckpointError: if the folder does not load, or the logits are further apart.
    """
    path = Path(folder).expanduser().absolute()
    expected = expected_logits.detach().float().cpu()
    named = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else inputs
    prompt = {} if isinstance(text, str) else text.prompt
    (got,) = ask([Question(path, named, prompt)], expected_logits.device, timeout=timeout)
    if isinstance(got, str):
        raise CheckpointError(f"{path} does not load in a fresh process:\n{got}")
    if got["logits"].shape != expected.shape:
        shape = tuple(got["logits"].shape)
        raise CheckpointError(f"{path} gives logits of shape {shape}, expected {tuple(expected.shape)}")
    distance = (got["logits"] - expected).abs().max().item()
    if tolerance is None:
        tolerance = (1e-3 if expected_logits.dtype == torch.float32 else 5e-2) * expected.abs().max().item()
    apart = 0.0 if isinstance(text, str) else text.distance(got["tokens"], got["steps"])
    for what, found in (("logits", distance), ("text", apart)):
        if not found <= tolerance:
            raise CheckpointError(
                f"{path} gives other {what} in a fresh process than the model in memory: logits differ by up to "
                f"{found:.3g}, more than {tolerance:.3g}. The folder must not be used; please report this."
            )
    return max(distance, apart)


def prove_folder(model: nn.Module, folder: str | os.PathLike[str]) -> float:
    """:func:`verify_folder` with a question made up for ``model``, the one in memory, and its answer.

    Raises:
        CheckpointError: if the folder does not load, or gives another answer.
        TraceError: if the inputs of the model cannot be told.
    """
    inputs = sample_inputs(bare(model))
    with torch.no_grad():
        logits = output_of(model(**inputs))
    return verify_folder(folder, inputs, logits, continuation(model, inputs))


def ask(
    questions: Sequence[Question], device: torch.device | str = "cpu", *, timeout: float = 1800.0
) -> list[dict[str, torch.Tensor] | str]:
    """What a fresh process, without network, answers to each question; where it cannot, the error as text.

    Folders are loaded as their manifests say, in a process that cannot import graphprune where none of them needs it.

    Returns:
        ``logits``; with a prompt also ``tokens`` and, behind each new one, logits as ``steps``; float32 on the CPU.
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-") as temporary:
        files = Path(temporary)
        jobs = [_job(question, files / str(i)) for i, question in enumerate(questions)]
        without = all(job["tier"] != "graphprune" for job in jobs)
        told = {"device": torch.device(device).type, "settings": SETTINGS, "without": without, "jobs": jobs}
        environment = {
            **processes.environment_alone(),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(files / "modules"),  # where transformers copies the code of folders to
        }
        if not without:
            package = str(Path(graphprune.__file__).parents[1])
            environment["PYTHONPATH"] = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and script
                [sys.executable, "-c", _SCRIPT, json.dumps(told)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"it did not load within {timeout:.0f} s"] * len(questions)
        ended = "\n".join(done.stderr.strip().splitlines()[-5:]) or f"the process ended with code {done.returncode}"
        return [_answer(Path(job["answer"]), ended) for job in jobs]


def _job(question: Question, place: Path) -> dict[str, str]:
    manifest = Manifest.read(question.folder)
    tensors = {f"inputs.{name}": value for name, value in question.inputs.items()}
    tensors |= {f"prompt.{name}": value for name, value in question.prompt.items()}
    place.mkdir()
    save_file(
        {n: t.detach().cpu().clone().contiguous() for n, t in tensors.items() if isinstance(t, torch.Tensor)},
        place / "question.safetensors",
    )
    return {
        "folder": str(question.folder),
        "tier": manifest.tier,
        "loader": _loader(question.folder, manifest),
        "question": str(place / "question.safetensors"),
        "answer": str(place / "answer.safetensors"),
    }


def _answer(file: Path, ended: str) -> dict[str, torch.Tensor] | str:
    error = file.with_name(f"{file.name}.error")
    if error.is_file():
        return "\n".join(error.read_text(encoding="utf-8").strip().splitlines()[-5:])
    return dict(load_file(file)) if file.is_file() else ended


def _loader(folder: Path, manifest: Manifest) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if manifest.tier == "hf-remote-code":
        return str(next(iter(config["auto_map"])))
    return loader_name(manifest.architecture, config.get("model_type", ""))
