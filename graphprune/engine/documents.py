"""From whatever holds text to one vector of token ids per document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from graphprune.errors import DataError, MissingExtraError
from graphprune.schema import Data

#: What ``train_data`` may be: a file, documents, token ids per document or of shape (n, length), a data set.
TrainData = str | Path | Sequence[str] | Sequence[Sequence[int]] | torch.Tensor | Dataset[Any]


def token_documents(data: TrainData | Data, tokenizer: Any) -> tuple[str, Iterator[torch.Tensor]]:
    """A name for messages, and one int64 vector of ids per document, read lazily.

    Raises:
        DataError: text without a tokenizer; while reading, a missing file or a malformed line.
        MissingExtraError: a data set is asked for and the package ``datasets`` is not installed.
    """
    if isinstance(data, torch.Tensor) or (
        isinstance(data, Sequence) and data and not isinstance(data, str) and not isinstance(data[0], str)
    ):
        return "train_data", (torch.as_tensor(ids, dtype=torch.int64).flatten() for ids in data)
    source, texts = _texts(cast("str | Path | Sequence[str] | Data", data))
    encode = _encoder(tokenizer, source)
    return source, (torch.tensor(encode(text), dtype=torch.int64) for text in texts if text.strip())


def rows_of(data: str | Path | Data) -> Iterable[str]:
    """The texts in a file or data set, one after the other; a text file is one.

    Raises:
        DataError: while reading, for a missing file or a malformed line.
        MissingExtraError: a data set is asked for and the package ``datasets`` is not installed.
    """
    return _texts(data)[1]


def _texts(data: str | Path | Sequence[str] | Data) -> tuple[str, Iterable[str]]:
    if isinstance(data, Data):
        if data.dataset is not None:
            return f"data set '{data.dataset}'", _from_dataset(data)
        if data.jsonl is not None:
            return str(data.jsonl), _from_jsonl(Path(data.jsonl), data.field)
        return _texts(Path(cast(str, data.text)))
    if isinstance(data, (str, Path)):
        path = Path(data)
        return str(path), (_from_jsonl(path, "text") if path.suffix == ".jsonl" else [_read(path)])
    return "train_data", data


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(
            f"no text file at {path} (relative paths start at the working directory {Path.cwd()})"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _from_jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: expected one JSON object per line, got {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            got = f"the fields {sorted(row)}" if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{path}, line {number}: expected text in the field '{field}', got {got}")
        yield row[field]


def _from_dataset(data: Data) -> Iterator[str]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "eval", "reading the data set of data.dataset") from None
    local = Path(cast(str, data.dataset))
    if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
        rows = datasets.load_from_disk(str(local))
        rows = rows[data.split] if isinstance(rows, datasets.DatasetDict) else rows
    else:
        rows = datasets.load_dataset(data.dataset, data.subset, split=data.split)
    if data.field not in rows.column_names:
        raise DataError(
            f"data set '{data.dataset}' has no field '{data.field}'; it has {sorted(rows.column_names)}. "
            "Name one as data.field."
        )
    return (row[data.field] for row in rows)


def _encoder(tokenizer: Any, source: str) -> Callable[[str], list[int]]:
    if tokenizer is None:
        raise DataError(
            f"{source} is text, which needs a tokenizer: pass tokenizer=..., or a model folder that holds one"
        )
    end = getattr(tokenizer, "eos_token_id", None)

    def encode(text: str) -> list[int]:
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    return encode
