"""Writing deferred weights: shard by shard, each tensor as it is computed, hashed on the way."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import nn
from transformers.core_model_loading import revert_weight_conversion
from typing_extensions import Self

from graphprune.checkpoint.manifest import FileRecord
from graphprune.checkpoint.stored_names import in_original_format, kept_tensors
from graphprune.errors import CheckpointError
from graphprune.stream.files import DTYPES
from graphprune.stream.nodes import Node, forget
from graphprune.stream.numbers import Numbers
from graphprune.stream.tensor import DeferredTensor, node_of

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are written."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: From the last to the first, as safetensors orders the tensors of a file: the widest first, so that all are aligned.
_ORDER = "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64".split()
_WEIGHTS = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"


def write_deferred(
    model: Any, folder: Path, *, max_shard_size: int | str = "50GB", progress: Progress | None = None
) -> dict[str, FileRecord]:
    """Writes config, generation config and weights of a model with deferred weights, as ``save_pretrained`` would.

    Args:
        model: a bare transformers model.
        folder: exists, and is empty.
        max_shard_size: of a weight file, unless a single tensor is larger; bytes, or a text such as ``5GB``.
        progress: is told of what is written.

    Returns:
        size and hash of every weight file.

    Raises:
        CheckpointError: if there is no room for it.
    """
    model.save_pretrained(folder, state_dict={})  # everything but the weights
    (folder / "model.safetensors").unlink(missing_ok=True)
    state = {name: node_of(tensor) for name, tensor in checkpoint_state(model).items()}
    sizes = {name: _bytes(node) for name, node in state.items()}
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if total > free:
        raise CheckpointError(
            f"the weights need {total / 1e9:.2f} GB, and {folder.parent} has {free / 1e9:.2f} GB free. "
            "Make room, or name a folder on another disk."
        )
    hollow = {n: torch.empty(node.shape, dtype=node.dtype, device="meta") for n, node in state.items()}
    split = split_torch_state_dict_into_shards(hollow, filename_pattern=_WEIGHTS, max_shard_size=max_shard_size)
    done, found = 0, {}
    for file, names in split.filename_to_tensors.items():

        def told(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        found[file] = _write_file(folder / file, {name: state[name] for name in names}, told)
        done += sum(sizes[name] for name in names)
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return found


def checkpoint_state(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model as its checkpoint has them: tied ones once, by the names and in the layout of files."""
    kept = kept_tensors(model)
    if not in_original_format(model):
        return kept
    found: dict[str, torch.Tensor] = revert_weight_conversion(model, kept)
    return found


def hollow_twin(model: nn.Module, twin: Callable[..., nn.Module]) -> nn.Module:
    """A copy made by ``twin`` (``copy.deepcopy``) in which every deferred weight is an empty one."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if isinstance(tensor, DeferredTensor):
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return twin(model, memo)


def _bytes(node: Node) -> int:
    return math.prod(node.shape) * node.dtype.itemsize


def _write_file(file: Path, nodes: Mapping[str, Node], told: Callable[[int], None]) -> FileRecord:
    order = sorted(nodes, key=lambda name: (-_ORDER.index(_NAMES[nodes[name].dtype]), name))
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        end = start + _bytes(nodes[name])
        shape = list(nodes[name].shape)
        head[name] = {"dtype": _NAMES[nodes[name].dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with _HashedFile(file) as writer:
        writer.write(np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8))
        done = 0
        for name in order:
            for piece in nodes[name].pieces():
                writer.write(piece)
                done += piece.nbytes
                told(done)
            expected = head[name]["data_offsets"][1]
            if done != expected:
                raise CheckpointError(f"'{name}': expected {expected} bytes by here, got {done}. Please report this.")
        forget()
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == set(order)
    return writer.record()


class _HashedFile:
    """A file that is hashed by a second thread while it is written."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self._size = 0
        self._waiting: queue.Queue[memoryview | None] = queue.Queue(16)
        self._thread = threading.Thread(target=self._hash, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        self._file.close()

    def write(self, piece: Numbers) -> None:
        """Writes the bytes of ``piece``, which must not change any more."""
        left = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        self._waiting.put(left)
        self._size += len(left)
        while left:
            left = left[self._file.write(left) :]

    def record(self) -> FileRecord:
        """Of what was written."""
        return FileRecord(bytes=self._size, sha256=self._digest.hexdigest())

    def _hash(self) -> None:
        while (piece := self._waiting.get()) is not None:
            self._digest.update(piece)
