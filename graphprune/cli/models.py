"""Models for the verbs: their structure without weights, and what a written folder says about itself."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from graphprune.checkpoint import load
from graphprune.checkpoint.config import auto_for, read_config
from graphprune.checkpoint.manifest import MANIFEST, Manifest
from graphprune.checkpoint.source import check_config
from graphprune.declare import trace_with
from graphprune.errors import CheckpointError, DataError, GraphPruneError
from graphprune.graph import DependencyGraph
from graphprune.specfile import load_spec
from graphprune.trace import trace

_EXPECTED = "expected a model as a hub id, a local folder or a config file"


def structure(name: str, *, task: str | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device; a folder that graphprune wrote is loaded with them.

    Args:
        name: a Hub id, a folder, or a config file.
        task: what the model is for (:data:`graphprune.tasks.TASKS`); by default its config says so.
        trust_remote_code: run modelling code that comes with the checkpoint.

    Raises:
        CheckpointError: if there is no such checkpoint, its config cannot be read or built, or its code is not
            trusted.
    """
    check_name(name)
    if Path(name).is_dir():
        check_config(Path(name))
    if (Path(name) / MANIFEST).is_file():
        return load(name, verify=False)  # its config may be that of the unpruned model
    try:
        config = read_config(name, trust_remote_code=trust_remote_code)
        auto = auto_for(name, config, task, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust_remote_code)
    except CheckpointError:
        raise
    except Exception as error:  # a config can make transformers raise anything, its own classes included
        raise CheckpointError(_no_model(name, error)) from error
    return model


def graph_of(
    name: str, *, spec: str | None = None, task: str | None = None, trust_remote_code: bool = False
) -> DependencyGraph:
    """The dependency graph of a checkpoint, with what a spec declares by hand; errors as in :func:`structure`.

    Raises:
        SpecError: if the spec is malformed, or declares what the model does not have.
    """
    wanted = load_spec(spec) if spec is not None else None
    model = structure(name, task=task, trust_remote_code=trust_remote_code)
    return trace(model) if wanted is None else trace_with(model, wanted, source=spec or "")


def check_name(name: str) -> None:
    """Refuses at once what can only be a path and is not there, instead of asking the hub for it.

    Raises:
        CheckpointError: if ``name`` reads as a path and there is no such folder or file.
    """
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or name.endswith(("/", ".json"))
    if looks_local and not Path(name).exists():
        raise CheckpointError(f"{_EXPECTED}, got '{name}': no such folder or file")


def _no_model(name: str, error: Exception) -> str:
    found = "a folder" if Path(name).is_dir() else "a file" if Path(name).is_file() else "no such folder"
    reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
    return f"{_EXPECTED}, got '{name}' ({found}): {reason}"


def told(folder: Path) -> list[str]:
    """What a folder that was just written says about itself: how to load it, and why not otherwise."""
    manifest = Manifest.read(folder)
    reasons = [("a stock checkpoint", manifest.why_not_hf), ("a self-contained folder", manifest.why_not_remote)]
    notes = [f"note: not {what}, because {reason}" for what, reason in reasons if reason]
    return [*notes, f"wrote {folder} (tier {manifest.tier}); load it with:", f"    {manifest.load}"]


def check_file(file: Path) -> None:
    """Refuses a text file that is not there, before a model is loaded for it.

    Raises:
        DataError: if there is no such file.
    """
    if not file.is_file():
        raise DataError(f"no text file at {file} (relative paths start at the working directory {Path.cwd()})")


def check_text(name: str) -> None:
    """Refuses what is neither a text file nor the name of a corpus.

    Raises:
        DataError: if there is no such file or corpus.
    """
    from graphprune.evaluate.corpora import CORPORA

    if name not in CORPORA and not Path(name).is_file():
        raise DataError(
            f"no text file at {name}, nor is that one of {', '.join(CORPORA)} "
            f"(relative paths start at the working directory {Path.cwd()})"
        )


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
