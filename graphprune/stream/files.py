"""Tensors in safetensors files: where each lies, checked before anything is read, and mapped only while it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from graphprune.errors import CheckpointError
from graphprune.stream.nodes import Picked
from graphprune.stream.tensor import DeferredTensor

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, kind)
    for name, kind in {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "C64": "complex64",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U64": "uint64",
        "U32": "uint32",
        "U16": "uint16",
        "U8": "uint8",
        "BOOL": "bool",
    }.items()
    if hasattr(torch, kind)  # the younger ones are not in every version that is supported
}
"""What safetensors calls the dtypes of torch."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, which lies ``offset`` bytes from its beginning."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def numbers(self) -> np.ndarray[Any, Any]:
        """Its content as integers of its width; mapped anew each time, so that what was read is let go again."""
        kind = np.dtype(f"u{self.dtype.itemsize}")
        if not self.shape or 0 in self.shape:
            with self.file.open("rb") as opened:
                opened.seek(self.offset)
                return np.fromfile(opened, kind, math.prod(self.shape)).reshape(self.shape)
        return np.asarray(np.memmap(self.file, kind, "r", self.offset, self.shape))


def stored(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of some safetensors files, by name.

    Raises:
        CheckpointError: if a file cannot be read, contradicts itself, or has numbers of an unknown kind; and if two of
            them have a tensor of the same name.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _header(file).items():
            if name in found:
                raise CheckpointError(f"'{name}' is in two files, {found[name].file} and {file}. Which one is meant?")
            found[name] = tensor
    return found


def deferred_weights(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The tensors of some safetensors files, none of them read; errors as :func:`stored`."""
    return {name: DeferredTensor(Picked.whole(tensor)) for name, tensor in stored(files).items()}


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:  # checks sizes, and that tensors fill the file without overlap
            opened.keys()
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file ({error}). Download it again.") from None
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{file}: '{name}' is of type {entry['dtype']}, which cannot be cut.")
        offset = 8 + length + entry["data_offsets"][0]
        found[name] = StoredTensor(file, offset, tuple(entry["shape"]), DTYPES[entry["dtype"]])
    return found
