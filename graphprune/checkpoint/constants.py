"""Constants that were cut with the units that went: in no stock checkpoint, so they have a file of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from graphprune.errors import CheckpointError
from graphprune.names import resolve_owner
from graphprune.reshape.buffers import cut_buffers
from graphprune.reshape.history import History

CONSTANTS = "constants.safetensors"


def write_constants(model: nn.Module, history: History, folder: Path) -> str | None:
    """Writes the cut buffers of ``model`` that no checkpoint has; the name of the file, None without any."""
    found = cut_buffers(model, history)
    if not found:
        return None
    # Copies: one buffer may stand in several places, and a file of tensors knows no aliases.
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}, folder / CONSTANTS)
    return CONSTANTS


def read_constants(file: Path) -> dict[str, torch.Tensor]:
    """What :func:`write_constants` wrote.

    Raises:
        CheckpointError: if there is no such file, or it is damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Copy it again from where it was written.") from None


def put_constants(
    model: nn.Module, wanted: Collection[str], constants: Mapping[str, torch.Tensor], *, as_saved: bool
) -> None:
    """Puts ``constants`` in the places of the buffers that were cut while ``model`` was built.

    Args:
        model: as it was loaded; what is in these buffers now has the right shapes and no meaning.
        wanted: the names of all buffers that were cut.
        constants: their contents by name.
        as_saved: keep the dtypes of ``constants``; otherwise those of the model's buffers.

    Raises:
        CheckpointError: if one is missing, or of another shape.
    """
    for name in wanted:
        owner, leaf = resolve_owner(model, name)
        now, saved = getattr(owner, leaf), constants.get(name)
        if saved is None or saved.shape != now.shape:
            got = "none" if saved is None else f"one of shape {tuple(saved.shape)}"
            raise CheckpointError(
                f"expected a constant '{name}' of shape {tuple(now.shape)} in {CONSTANTS}, which was cut with its "
                f"units, got {got}. The folder does not fit its plan: copy it again from where it was written."
            )
        owner._buffers[leaf] = saved.to(now.device, saved.dtype if as_saved else now.dtype)
