"""The manifest of a checkpoint: what it is, where it came from, how to load it, and what its files hash to."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

import graphprune
from graphprune.errors import CheckpointError

MANIFEST = "manifest.json"


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str


class StepFiles(BaseModel):
    """The files of one pruning: its plan and the graph of the model it was made for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: str
    graph: str


class Manifest(BaseModel):
    """What ``manifest.json`` says.

    Attributes:
        tier: ``hf`` loads with stock ``from_pretrained``; ``hf-remote-code`` does so with the modelling file that the
            folder carries (``trust_remote_code=True``); ``graphprune`` needs :func:`graphprune.load`.
        load: the line of code that loads the folder.
        architecture: the class of the model, by its name in transformers.
        base_name: where the unpruned model came from.
        base_config: the unpruned model's config.
        steps: every pruning, oldest first; they lead from the base config to this checkpoint.
        constants: the file of cut constants that are in no stock checkpoint, where there are any.
        why_not_hf: for other tiers than ``hf`` the reason, where that tier was wanted.
        why_not_remote: for tier ``graphprune`` the reason why it is not ``hf-remote-code``, where that was wanted.
        libraries: versions of what wrote the folder.
        files: every other file of the folder.
        checksum: of all of the above, so that an edit does not go unnoticed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tier: Literal["hf", "hf-remote-code", "graphprune"]
    load: str
    architecture: str
    base_name: str = ""
    base_config: dict[str, Any]
    steps: tuple[StepFiles, ...] = ()
    constants: str | None = None
    why_not_hf: str = ""
    why_not_remote: str = ""
    libraries: dict[str, str]
    files: dict[str, FileRecord]
    checksum: str = ""

    @field_validator("constants", "steps")
    @classmethod
    def _inside(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else [n for step in value or () for n in (step.plan, step.graph)]:
            if Path(name).name != name:
                raise ValueError(f"expected the name of a file in this folder, got '{name}'")
        return value

    def write(self, folder: Path) -> None:
        """Writes ``manifest.json`` into ``folder``."""
        signed = self.model_copy(update={"checksum": self._digest()})
        (folder / MANIFEST).write_text(signed.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"checksum"}).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of ``folder``.

        Raises:
            CheckpointError: if there is none, or it is damaged, edited or of a newer format.
        """
        file = folder / MANIFEST
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no {MANIFEST}, so graphprune.save did not write it. "
                "Load an ordinary checkpoint with transformers' from_pretrained."
            )
        try:
            found = cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{file} is damaged, or was written by a newer version of graphprune than {graphprune.__version__}: "
                f"{error}"
            ) from None
        if found.checksum and found.checksum != found._digest():
            raise CheckpointError(
                f"{file} was edited: its content is not what was written. What it says (the tier, the base config, the "
                "plans) decides how the weights are read, so nothing was read. Copy it again from where it was written."
            )
        return found

    def check(self, folder: Path) -> None:
        """Compares every file of ``folder`` with its record.

        Raises:
            CheckpointError: naming every file that is missing or differs.
        """
        problems = []
        for name, expected in self.files.items():
            file = folder / name
            if not file.is_file():
                problems.append(f"{name} is missing")
            elif file.stat().st_size != expected.bytes:
                problems.append(f"{name}: expected {expected.bytes} bytes, got {file.stat().st_size}")
            elif sha256(file) != expected.sha256:
                problems.append(f"{name}: its content is not what was written")
        if problems:
            raise CheckpointError(
                f"{folder} is damaged:\n  - " + "\n  - ".join(problems) + "\nCopy it again from where it was written."
            )


def records(folder: Path, known: Mapping[str, FileRecord] | None = None) -> dict[str, FileRecord]:
    """Size and hash of every file below ``folder``, but for the manifest itself; ``known`` ones are not read again."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)
    names = {f.relative_to(folder).as_posix(): f for f in files}
    known = known or {}
    return {n: known.get(n) or FileRecord(bytes=f.stat().st_size, sha256=sha256(f)) for n, f in names.items()}


def sha256(file: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of Python, of graphprune, and of what trains, writes and loads models."""
    found = {"python": platform.python_version(), "graphprune": graphprune.__version__}
    for name in ("torch", "transformers", "accelerate", "safetensors", "peft"):
        found[name] = version(name)
    with suppress(PackageNotFoundError):
        found["bitsandbytes"] = version("bitsandbytes")
    return found
