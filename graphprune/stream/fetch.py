"""From the name of a checkpoint to a folder: the Hub is asked for weights and settings, never for pickles."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import snapshot_download

from graphprune.errors import CheckpointError
from graphprune.stream.copies import SIDE_FILES

_WANTED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", *SIDE_FILES]


def fetched(source: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Path:
    """The folder of a checkpoint: itself, or where the Hub's copy of it is.

    Args:
        source: a local folder, or a Hub id.
        trust_remote_code: fetch the modelling code that comes with the checkpoint, too.

    Raises:
        CheckpointError: if there is no such folder, and the Hub has none or cannot be asked.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists() or name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise CheckpointError(f"no model folder at {folder}. Give an existing folder or a Hub id (owner/name).")
    try:
        return Path(snapshot_download(name, allow_patterns=[*_WANTED, *(["*.py"] if trust_remote_code else [])]))
    except Exception as error:  # the Hub's client raises its own, requests' and OS errors
        raise CheckpointError(f"'{name}' cannot be fetched from the Hub: {error}") from error
