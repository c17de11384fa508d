"""Models for the verbs: their structure without weights, and what a written folder says about itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from graphprune.checkpoint import load
from graphprune.checkpoint.manifest import MANIFEST, Manifest
from graphprune.checkpoint.source import check_config
from graphprune.declare import trace_with
from graphprune.errors import CheckpointError, DataError, GraphPruneError
from graphprune.graph import DependencyGraph
from graphprune.specfile import load_spec
from graphprune.trace import trace


def structure(name: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device; a folder that graphprune wrote is loaded with them.

    Raises:
        CheckpointError: if there is no such checkpoint, or its config cannot be read or built.
    """
    check_name(name)
    if Path(name).is_dir():
        check_config(Path(name))
    if (Path(name) / MANIFEST).is_file():
        return load(name, verify=False)  # its config may be that of the unpruned model
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a config can make transformers raise anything, its own classes included
        raise CheckpointError(_no_model(name, error)) from error
    return model


def graph_of(name: str, *, spec: str | None = None, trust_remote_code: bool = False) -> DependencyGraph:
    """The dependency graph of a checkpoint, with what a spec declares by hand; errors as in :func:`structure`.

    Raises:
        SpecError: if the spec is malformed, or declares what the model does not have.
    """
    wanted = load_spec(spec) if spec is not None else None
    model = structure(name, trust_remote_code=trust_remote_code)
    return trace(model) if wanted is None else trace_with(model, wanted, source=spec or "")


def check_name(name: str) -> None:
    """Refuses at once what can only be a path and is no folder, instead of asking the hub for it.

    Raises:
        CheckpointError: if ``name`` reads as a path and there is no such folder.
    """
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or name.endswith("/")
    if looks_local and not Path(name).is_dir():
        raise CheckpointError(f"expected a decoder as a hub id or a local folder, got '{name}': no such folder")


def _no_model(name: str, error: Exception) -> str:
    found = "a folder" if Path(name).is_dir() else "no such folder"
    reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    return f"expected a decoder as a hub id or a local folder, got '{name}' ({found}): {reason}"


def told(folder: Path) -> list[str]:
    """What a folder that was just written says about itself: how to load it, and why not otherwise."""
    manifest = Manifest.read(folder)
    lines = [f"wrote {folder}; load it with:", f"    {manifest.load}"]
    if manifest.why_not_hf:
        lines.insert(0, f"note: not a stock checkpoint, because {manifest.why_not_hf}")
    return lines


def check_file(file: Path) -> None:
    """Refuses a text file that is not there, before a model is loaded for it.

    Raises:
        DataError: if there is no such file.
    """
    if not file.is_file():
        raise DataError(f"no text file at {file} (relative paths start at the working directory {Path.cwd()})")


def device_of(name: str | None) -> torch.device:
    """The device of that name; without one the accelerator, if there is any, else the CPU.

    Raises:
        GraphPruneError: if there is no such device here.
    """
    if name is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise GraphPruneError(f"--device: expected a device of this machine, got '{name}': {reason}") from None
    return device
