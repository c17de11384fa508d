"""What lies beside the weights and stays as it is: tokenizer, chat templates, processors, the licence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from graphprune.errors import CheckpointError

#: Names of files that say how text, pictures and sound become inputs, by the conventions of the Hub.
SIDE_FILES = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "*processor_config.json",
    "LICENSE*",
    "NOTICE*",
]


class SideFiles:
    """The side files of a checkpoint folder; saved as a tokenizer is.

    Raises:
        CheckpointError: if one of them is a link to somewhere else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = sorted(
            {f for pattern in SIDE_FILES for f in folder.glob(pattern) if f.is_file() and f.suffix not in _CODE}
        )
        for file in self.files:
            _check_inside(file, folder)

    def save_pretrained(self, folder: Path) -> None:
        """Copies them into ``folder``."""
        for file in self.files:
            copy = folder / file.relative_to(self._folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


_CODE = {".py", ".bin", ".pt", ".pth", ".pkl", ".safetensors"}


def _check_inside(file: Path, folder: Path) -> None:
    """A link may lead into the blobs of the Hub's cache; elsewhere it could carry off what nobody meant to share."""
    real, home = file.resolve(), folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in homes):
        raise CheckpointError(
            f"{file} is a link to {os.path.realpath(file)}, outside of the checkpoint, and would be copied along. "
            "Put the file itself there, or remove the link."
        )
