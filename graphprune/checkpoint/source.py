"""Opening a model, from a folder or from the Hub, with errors that say what is wrong."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel

from graphprune.checkpoint.config import auto_for, read_config
from graphprune.checkpoint.load import load
from graphprune.checkpoint.manifest import MANIFEST
from graphprune.errors import CheckpointError
from graphprune.reshape.config import quiet
from graphprune.stream.files import stored

log = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_model(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """The model and the tokenizer at ``path_or_id``, in evaluation mode; the tokenizer is None where there is none.

    Args:
        path_or_id: a local folder, one written by :func:`graphprune.save` included, or a Hub id.
        dtype: of the weights; as they are stored by default.
        device: where to put the model; the CPU by default.
        task: what the model is for, one of :data:`graphprune.tasks.TASKS`; by default its config says so.
        trust_remote_code: run modelling code that comes with the checkpoint.

    Raises:
        CheckpointError: if there is no such model, or its files are missing, damaged, or pickled.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        check_weights(folder)
        source: str = str(folder)
    else:
        source = str(path_or_id)
        if folder.exists() or source.count("/") > 1 or source.startswith((".", "~", "/")):
            raise CheckpointError(f"no model folder at {folder}. Give an existing folder or a Hub id (owner/name).")
    if folder.is_dir() and (folder / MANIFEST).is_file():
        model: Any = load(folder, dtype=dtype, verify=False)
    else:
        model = _from_pretrained(source, dtype, task, trust_remote_code)
    tokenizer = _tokenizer(source, trust_remote_code)
    return (model.to(device) if device is not None else model), tokenizer


def load_adapter(model: PreTrainedModel, folder: str | os.PathLike[str]) -> Any:
    """``model`` with the PEFT adapter of a folder on it, in evaluation mode.

    Raises:
        CheckpointError: if there is no adapter in safetensors, or it does not fit the model.
    """
    path = Path(folder).expanduser()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            raise CheckpointError(f"expected a PEFT adapter in {path}, which has no {name}")
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path).eval()
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the adapter in {path} does not fit a {type(model).__name__}: {reason}") from error


def check_weights(folder: Path) -> None:
    """Raises :class:`CheckpointError` unless ``folder`` has a config and complete, readable safetensors files."""
    check_config(folder)
    files = weight_files(folder)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(files)} weight files that {_INDEX} names: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. Download them again."
        )
    stored(folder / name for name in files)


def check_config(folder: Path) -> None:
    """Raises :class:`CheckpointError` unless ``folder`` has a config.json."""
    if (folder / "config.json").is_file():
        return
    adapter = (folder / "adapter_config.json").is_file()
    hint = "It is a PEFT adapter; merge it into its base model and save that." if adapter else "Is it a model folder?"
    raise CheckpointError(f"{folder} has no config.json. {hint}")


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files that a checkpoint folder consists of; errors as :func:`check_weights`."""
    index = folder / _INDEX
    if index.is_file():
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = sorted(set(named))
            odd = [name for name in names if not _is_inside(name)]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{index} is no index of weight files ({error!r})") from None
        if odd or not names:
            got = f"'{odd[0]}'" if odd else "none"
            raise CheckpointError(
                f"{index}: expected names of safetensors files inside of the folder, got {got}. Nothing was read; "
                "download the checkpoint again from where you trust it."
            )
        return names
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} has its weights as {pickled[0]} only, which is pickled code. Only safetensors are read: load it "
            "once with transformers where you trust it, and save_pretrained it."
        )
    raise CheckpointError(f"{folder} has neither {_WEIGHTS} nor {_INDEX}; other formats are not read")


def _is_inside(name: str) -> bool:
    """Whether a name in an index is that of a safetensors file in the same folder, or below."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name
    return path.suffix == ".safetensors" and not outside


def _from_pretrained(source: str, dtype: str | torch.dtype, task: str | None, trust_remote_code: bool) -> Any:
    try:
        with quiet():
            config = read_config(source, trust_remote_code=trust_remote_code)
            auto = auto_for(source, config, task, trust_remote_code=trust_remote_code)
            model, info = auto.from_pretrained(
                source,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # only so that they are told below, by name and size
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:  # a config can make transformers raise anything, its own classes included
        raise CheckpointError(f"'{source}' cannot be loaded: {error}") from error
    check_complete(source, model, info)
    return model


def check_complete(source: str, model: Any, info: dict[str, Any]) -> None:
    """Refuses a model of which transformers would have made up a part: it gives random weights to what it lacks."""
    other = sorted(info.get("mismatched_keys") or ())
    if other:
        name, stored, expected = other[0]
        raise CheckpointError(
            f"the weights in '{source}' do not fit its config: {len(other)} tensors have other sizes, such as "
            f"'{name}': expected {tuple(expected)}, got {tuple(stored)}. Does config.json belong to these weights?"
        )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise CheckpointError(
            f"the weights in '{source}' lack {len(missing)} tensors of a {type(model).__name__}: "
            f"{_some(missing)}. They would be random. Is this checkpoint complete, and one of such a model (--task)?"
        )
    unused = sorted(info.get("unexpected_keys") or ())
    if unused:
        log.warning(
            "'%s' holds %d tensors that a %s does not use: %s", source, len(unused), type(model).__name__, _some(unused)
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _tokenizer(source: str, trust_remote_code: bool) -> Any:
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if folder.is_dir():
            raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        return None
