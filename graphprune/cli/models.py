"""Models for the verbs: their structure without weights, and what a written folder says about itself."""

from __future__ import annotations

from pathlib import Path

import torch

from graphprune.checkpoint.manifest import Manifest
from graphprune.checkpoint.structure import check_name, structure
from graphprune.declare import trace_with
from graphprune.errors import DataError, GraphPruneError
from graphprune.graph import DependencyGraph
from graphprune.specfile import load_spec
from graphprune.trace import trace

__all__ = ["check_file", "check_name", "check_text", "device_of", "graph_of", "structure", "told"]


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
