"""Merging a LoRA adapter into weights that are still in their files: PEFT's own code does it, when they are written."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from graphprune.errors import CheckpointError
from graphprune.stream.files import stored
from graphprune.stream.tensor import DeferredTensor, deferred, is_deferred

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def merge_adapter(model: PreTrainedModel, adapter: str | os.PathLike[str]) -> PreTrainedModel:
    """``model`` with a LoRA adapter merged into its weights; later, where these are deferred.

    Args:
        model: is changed.
        adapter: the folder of an adapter that PEFT saved.

    Raises:
        CheckpointError: if there is no adapter, it is damaged or pickled, no LoRA, or was trained on another base.
        StreamError: if merging it takes more than arithmetic.
    """
    import peft

    folder = Path(adapter).expanduser()
    _check(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is an error below
            wrapped: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # PEFT raises as many kinds as it has reasons
        reason = " ".join(str(error).split())[:600]
        raise CheckpointError(
            f"the adapter in {folder} does not fit this model: {reason}. {_trained_on(folder)}"
        ) from error
    _check_names(folder, wrapped)
    for module in wrapped.modules() if is_deferred(model) else ():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            _defer(module)
    merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged


def _defer(layer: Any) -> None:
    """The adapter's own tensors must not be multiplied out at once: all products would be as large as the model."""
    for module in layer.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None and not isinstance(tensor, DeferredTensor):
                module._parameters[name] = deferred(tensor)


def _check(folder: Path) -> None:
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"--adapter: expected the folder of a PEFT adapter, got {folder}, without {_CONFIG}.")
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(
            f"--adapter: {folder} has no {_WEIGHTS}. Pickled adapters are not opened: load it once with peft where you "
            "trust it, and save_pretrained it."
        )
    stored([folder / _WEIGHTS])
    try:
        kind = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / _CONFIG} is no adapter config ({error})") from None
    if kind != "LORA":
        raise CheckpointError(
            f"--adapter: expected a LoRA adapter, got '{kind}' in {folder}. Merge it with peft first."
        )


def _check_names(folder: Path, wrapped: nn.Module) -> None:
    """PEFT only warns of tensors that it has no use for, and of layers that the adapter says nothing about."""
    import peft

    saved = set(stored([folder / _WEIGHTS]))
    least = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    most = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=True))
    odd = sorted((saved - most) | (least - saved))
    if odd:
        which = "has no place for" if odd[0] in saved else "would need"
        raise CheckpointError(
            f"the adapter in {folder} does not fit this model, which {which} {len(odd)} tensors such as '{odd[0]}'. "
            f"{_trained_on(folder)}"
        )


def _trained_on(folder: Path) -> str:
    base = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return (
        f"It was trained on '{base}'. Give that model, as it was then." if base else "Give the model it was trained on."
    )
