"""Asking a fresh process: it loads a folder as its manifest promises, and says what came of it."""

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

import graphprune
from graphprune import processes
from graphprune.checkpoint.greedy import SETTINGS
from graphprune.checkpoint.manifest import Manifest
from graphprune.tasks import loader_name


@dataclass(frozen=True)
class Question:
    """What is asked of a folder.

    Attributes:
        folder: written by :func:`graphprune.save`.
        inputs: tensors of its forward pass, by name. Without any, it is only asked whether everything finds its place:
            weights are read one by one and not kept.
        prompt: what it continues, by name; nothing where it is not asked to.
        adapter: the folder of a PEFT adapter to put on the model first.
    """

    folder: Path
    inputs: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)
    adapter: Path | None = None


_SCRIPT = """
import json, sys, torch, safetensors.torch
told = json.loads(sys.argv[1])
if told["without"]:
    sys.modules["graphprune"] = None  # importing it fails from here on
import transformers


def base(job):
    if job["tier"] == "graphprune":
        import graphprune
        return graphprune.load(job["folder"], device=job["device"])
    loader = getattr(transformers, job["loader"])
    options = {"trust_remote_code": True} if job["tier"] == "hf-remote-code" else {}
    if job["device"] == "meta":
        options |= {"device_map": {"": "meta"}, "ignore_mismatched_sizes": True}  # so that they are named below
    model, info = loader.from_pretrained(job["folder"], dtype="auto", output_loading_info=True, **options)
    problems = {key: found for key, found in info.items() if found}
    assert not problems, problems
    return model.to(job["device"])


def loaded(job):
    model = base(job)
    if job["adapter"]:
        import peft
        model = peft.PeftModel.from_pretrained(model, job["adapter"]).to(job["device"])
    return model.eval()


def answer(job):
    model = loaded(job)
    if job["device"] == "meta":
        return {"parameters": torch.tensor(model.num_parameters())}
    given = {"inputs": {}, "prompt": {}}
    for name, tensor in safetensors.torch.load_file(job["question"]).items():
        part, _, name = name.partition(".")
        given[part][name] = tensor.to(job["device"])
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


def ask(
    questions: Sequence[Question], device: torch.device | str = "cpu", *, timeout: float = 1800.0
) -> list[dict[str, torch.Tensor] | str]:
    """What a fresh process, without network, answers to each question; where it cannot, the error as text.

    Folders are loaded as their manifests say, in a process that cannot import graphprune where none of them needs it.

    Returns:
        ``logits``; with a prompt also ``tokens`` and, behind each new one, logits as ``steps``; float32 on the CPU.
        Without inputs, the number of ``parameters``.
    """
    with tempfile.TemporaryDirectory(prefix="graphprune-") as temporary:
        files = Path(temporary)
        kind = torch.device(device).type
        jobs = [_job(question, kind, files / str(i)) for i, question in enumerate(questions)]
        without = all(job["tier"] != "graphprune" for job in jobs)
        told = {"settings": SETTINGS, "without": without, "jobs": jobs}
        environment = {
            **processes.environment_alone(),
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(files / "modules"),  # where transformers copies the code of folders to
        }
        if any(job["device"] == "meta" for job in jobs):
            environment["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # one tensor at a time
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


def _job(question: Question, device: str, place: Path) -> dict[str, str]:
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
        "adapter": str(question.adapter or ""),
        "device": device if question.inputs else "meta",
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
