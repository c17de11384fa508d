"""What a checkpoint is made of, without its weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from graphprune.checkpoint.config import auto_for, read_config
from graphprune.checkpoint.load import load
from graphprune.checkpoint.manifest import MANIFEST
from graphprune.checkpoint.source import check_config
from graphprune.errors import CheckpointError

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
