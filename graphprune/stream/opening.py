"""Opening a checkpoint as a model whose weights stay in their files."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from graphprune.checkpoint.config import auto_for, read_config
from graphprune.checkpoint.load import load_by
from graphprune.checkpoint.manifest import MANIFEST
from graphprune.checkpoint.source import check_complete, check_weights, weight_files
from graphprune.errors import CheckpointError, StreamError
from graphprune.reshape.config import quiet
from graphprune.stream.files import deferred_weights
from graphprune.stream.write import hollow_twin


def open_deferred(
    folder: Path,
    *,
    name: str = "",
    dtype: str | torch.dtype = "auto",
    task: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in ``folder``, in evaluation mode; its weights are deferred, but for what no checkpoint stores.

    Args:
        folder: of safetensors, one that :func:`graphprune.save` wrote included.
        name: what the model is called, where that is not the folder.
        dtype: of the weights; as they are stored by default.
        task: what the model is for (:data:`graphprune.tasks.TASKS`); by default its config says so.
        trust_remote_code: run modelling code that comes with the checkpoint.

    Raises:
        CheckpointError: if the model's files are missing, damaged, or pickled, or do not fit its config.
        StreamError: if it can only be loaded with its weights.
    """
    check_weights(folder)
    name = name or str(folder)
    weights = deferred_weights(folder / file for file in weight_files(folder))

    def read(model_class: Any, config: Any, **options: Any) -> Any:
        found = _plain(model_class, config).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, **options
        )
        _be_called(found[0], name)
        _generation(found[0], folder)
        return found

    if (folder / MANIFEST).is_file():
        return load_by(read, folder, dtype=dtype, verify=True)
    try:
        with quiet():
            config = read_config(str(folder), trust_remote_code=trust_remote_code)
            if getattr(config, "quantization_config", None) is not None:
                raise StreamError(f"the weights in '{name}' are quantised")
            auto = auto_for(str(folder), config, task, trust_remote_code=trust_remote_code)
            kind = _plain(auto, config, trust_remote_code=trust_remote_code)
            model, info = read(kind, config, ignore_mismatched_sizes=True)  # told below, by name and size
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises as many kinds as there are models; loading it whole will tell
        raise StreamError(f"'{name}' cannot be opened without its weights: {error}") from error
    check_complete(name, model, info)
    opened: PreTrainedModel = model
    return opened


def structure_of(model: nn.Module) -> nn.Module:
    """A copy of a model with deferred weights that has none at all: for tracing."""
    return hollow_twin(model, copy.deepcopy)


def _plain(kind: Any, config: Any, **options: Any) -> Any:
    """The class that an auto class builds; only plain classes load what has no place of its own."""
    if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
        return kind
    with torch.device("meta"):
        return type(kind.from_config(config, **options))


def _be_called(model: Any, name: str) -> None:
    model.config._name_or_path = name
    model.name_or_path = name


def _generation(model: Any, folder: Path) -> None:
    if model.can_generate():
        with suppress(OSError):  # without such a file, what the config says holds
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
