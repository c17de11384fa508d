"""The weights of a model on their way into a folder: merged or beside their adapters, from memory or from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from graphprune.checkpoint.adapters import merged, unmerged, write_adapters
from graphprune.checkpoint.manifest import FileRecord
from graphprune.checkpoint.stored_names import in_original_format
from graphprune.names import bare, resolve_owner
from graphprune.reshape.config import quiet
from graphprune.stream.tensor import is_deferred


@dataclass(frozen=True)
class Weights:
    """Weights to write.

    Attributes:
        model: bare or wrapped with LoRA adapters.
        target: the name that the folder will take.
        merge_lora: whether adapters are merged, or written into the sub-folder ``adapter``.
        max_shard_size: of a file, unless a single tensor is larger.
        progress: of weights that are still in their files, told how many bytes of how many are written.
    """

    model: nn.Module
    target: Path
    merge_lora: bool
    max_shard_size: int | str
    progress: Callable[[int, int], None] | None

    def write(self, folder: Path, buffers: Sequence[str] = ()) -> dict[str, FileRecord]:
        """Writes them, with ``buffers`` that no stock checkpoint has; gives records of files hashed on the way."""
        with quiet(), _in_weights(self.model, buffers):
            base: Any = merged(self.model) if self.merge_lora else unmerged(self.model)
            if is_deferred(base):
                from graphprune.stream.write import write_deferred  # which writes records of this package's manifest

                return write_deferred(base, folder, max_shard_size=self.max_shard_size, progress=self.progress)
            original = in_original_format(base)
            base.save_pretrained(folder, max_shard_size=self.max_shard_size, save_original_format=original)
            if base is not bare(self.model) and not self.merge_lora:
                write_adapters(self.model, base, folder, str(self.target))
            return {}


@contextmanager
def _in_weights(model: nn.Module, buffers: Sequence[str]) -> Iterator[None]:
    """Lets buffers that no stock checkpoint has be written with the weights, each as a tensor of its own."""
    places = [resolve_owner(model, name) for name in buffers]
    held = [owner._buffers[leaf] for owner, leaf in places]
    for owner, leaf in places:
        owner._non_persistent_buffers_set.discard(leaf)
        owner._buffers[leaf] = owner.get_buffer(leaf).clone()
    try:
        yield
    finally:
        for (owner, leaf), tensor in zip(places, held, strict=True):
            owner._non_persistent_buffers_set.add(leaf)
            owner._buffers[leaf] = tensor
