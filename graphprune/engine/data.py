"""From text to fixed-length blocks of token ids: what training and scoring read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from graphprune.engine.documents import TrainData, token_documents
from graphprune.errors import DataError
from graphprune.schema import Data

_FINGERPRINTED = 1000
_MORE = "Give more text, or lower {setting}."


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Sequences of equal length: ``ids`` is int64 of shape (n, sequence_length).

    Attributes:
        source: where the text came from, for messages.
        fingerprint: sha256 of shape and ids: equal for equal data, whatever file it came from.
    """

    def __init__(self, ids: torch.Tensor, source: str) -> None:
        self.ids = ids
        self.source = source
        shape = str(tuple(ids.shape)).encode()
        self.fingerprint = hashlib.sha256(shape + ids.contiguous().numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}

    def split(self, held_out: int, seed: int) -> tuple[Blocks, Blocks]:
        """Two disjoint parts, the second of ``held_out`` blocks; the same for the same seed, order kept."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        first, second = order[held_out:].sort().values, order[:held_out].sort().values
        return Blocks(self.ids[first], self.source), Blocks(self.ids[second], self.source)


def load_blocks(
    data: TrainData | Data,
    *,
    sequence_length: int,
    tokenizer: Any = None,
    limit: int | None = None,
) -> Blocks:
    """Reads, tokenises, concatenates and cuts ``data`` into blocks; the remainder is dropped.

    Every document gets the special tokens its tokenizer gives any text, and the end-of-sequence token,
    where there is one, after it. Token ids are taken as they come: nothing is put between them.

    Args:
        data: the ``data`` section of a spec, a file (``.jsonl`` is read as such, anything else as one document of
            plain text), a list of documents, token ids per document, or token ids of shape (n, length). Blocks are
            given back.
        sequence_length: tokens per block.
        tokenizer: a Hugging Face tokenizer; needed for text.
        limit: stop reading after this many blocks.

    Raises:
        DataError: nothing to read, not one block, malformed lines, or text without a tokenizer.
    """
    if isinstance(data, Blocks):
        return _as_they_are(data, sequence_length)
    source, documents = token_documents(data, tokenizer)
    wanted = None if limit is None else limit * sequence_length
    parts: list[torch.Tensor] = []
    total = 0
    for ids in documents:
        parts.append(ids)
        total += len(ids)
        if wanted is not None and total >= wanted:
            break
    if total == 0:
        raise DataError(f"{source} is empty: expected text to train and calibrate on, got no tokens.")
    if total < sequence_length:
        raise DataError(
            f"{source} has {total} tokens in {len(parts)} documents; sequence_length is {sequence_length}, "
            f"so there is not one sequence. {_MORE.format(setting='training.sequence_length')}"
        )
    count = total // sequence_length if limit is None else min(total // sequence_length, limit)
    return Blocks(torch.cat(parts)[: count * sequence_length].view(count, sequence_length), source)


def _as_they_are(blocks: Blocks, sequence_length: int) -> Blocks:
    length = blocks.ids.shape[1]
    if length != sequence_length:
        raise DataError(
            f"{blocks.source} is in sequences of {length} tokens already; training.sequence_length is {sequence_length}"
        )
    return blocks


def check_enough(data: Dataset[Any], batch_size: int, setting: str = "training.batch_size") -> None:
    """Raises :class:`DataError` unless ``data`` fills at least one batch of ``batch_size`` sequences."""
    count = len(cast(Sequence[Any], data))
    if count < batch_size:
        source = data.source if isinstance(data, Blocks) else "train_data"
        raise DataError(
            f"{source} makes {count} sequences; {setting} is {batch_size}, so there is not one batch. "
            f"{_MORE.format(setting=f'{setting} or training.sequence_length')}"
        )


def check_vocabulary(blocks: Blocks, size: int) -> None:
    """Raises :class:`DataError` for token ids that a model with ``size`` embeddings does not have."""
    highest = int(blocks.ids.max())
    if highest >= size:
        raise DataError(
            f"{blocks.source} has the token id {highest}; the model's vocabulary has {size} entries. "
            "Is this the model's own tokenizer?"
        )


def fingerprint(data: Dataset[Any]) -> str:
    """sha256 of a data set: of all ids of :class:`Blocks`, else of the length and the first 1000 examples."""
    if isinstance(data, Blocks):
        return data.fingerprint
    examples = cast(Sequence[Any], data)
    digest = hashlib.sha256(str(len(examples)).encode())
    for index in range(min(len(examples), _FINGERPRINTED)):
        digest.update(example(examples[index])["input_ids"].numpy().tobytes())
    return digest.hexdigest()


def example(item: Any) -> dict[str, torch.Tensor]:
    """One training example as ``input_ids`` and ``labels``, from a mapping, a list or a tensor of ids."""
    fields = dict(item) if hasattr(item, "keys") else {"input_ids": item}
    if "input_ids" not in fields:
        raise DataError(f"an example of train_data needs 'input_ids', got the fields {sorted(fields)}")
    tensors = {k: torch.as_tensor(fields[k]) for k in ("input_ids", "labels", "attention_mask") if k in fields}
    return {"labels": tensors["input_ids"], **tensors}


def collate(items: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Stacks examples of equal length to a batch; labels default to the inputs.

    Raises:
        DataError: for examples of different lengths.
    """
    examples = [example(item) for item in items]
    lengths = sorted({len(e["input_ids"]) for e in examples})
    if len(lengths) > 1:
        raise DataError(
            f"the examples of one batch have different lengths, {lengths[0]} to {lengths[-1]} tokens. Pass "
            "lists of token ids to have them packed, or use gp.PruneCallback in your own Trainer."
        )
    return {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
