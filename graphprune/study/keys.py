"""What a result depends on, and its hash: the name under which it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune.engine.identity import spec_of_run
from graphprune.engine.modes import needs_data
from graphprune.evaluate import Questions
from graphprune.importance import Signal
from graphprune.schema import PruneSpec
from graphprune.study.grid import Grid
from graphprune.study.records import FORMAT

#: Of a spec's ``training``, what only says how to train.
_OF_TUNING = (
    "steps",
    "learning_rate",
    "weight_decay",
    "warmup_ratio",
    "lr_scheduler",
    "max_grad_norm",
    "gradient_checkpointing",
)
#: Letters of a key.
_LENGTH = 16


def effective(spec: PruneSpec) -> dict[str, Any]:
    """What of a spec decides the result in its mode: equal where two cells are the same run."""
    used = spec_of_run(spec)
    mode, training = spec.training.mode, used["training"]
    training["micro_batch_size"] = spec.training.micro_batch
    if mode == "joint":
        for name in ("rounds", "calibration_batches"):
            del training[name]
        return used
    del used["schedule"], used["criterion"]["average"], training["compact"]
    if mode == "none":
        for name in (*_OF_TUNING, "batch_size"):
            del training[name]
        if Signal.LORA not in spec.criterion.build().signals:
            del used["lora"]
    return used


def cell_key(spec: PruneSpec, model: str, data: str, evaluation: str, measured: str) -> str:
    """The key of a cell, from its spec and fingerprints.

    Args:
        spec: of the cell.
        model: :func:`weights_fingerprint`.
        data: of the training sequences; does not count where none are read.
        evaluation: of the sequences for the perplexity.
        measured: :func:`questions_fingerprint`.
    """
    data = data if needs_data(spec) else ""
    return digest(["cell", FORMAT, effective(spec), model, data, evaluation, measured])


def dense_key(model: str, measured: str) -> str:
    """The key of what is measured of a model as it came."""
    return digest(["dense", FORMAT, model, measured])


def scores_key(spec: PruneSpec, model: str, data: str, groups: Iterable[str]) -> str | None:
    """The key of one-shot scores; None where the cell judges units more than once, or the modules of a group apart.

    Ratios, scopes and what happens after scoring do not count.
    """
    training, criterion = spec.training, spec.criterion.build()
    if training.mode == "joint" or training.rounds > 1 or not spec.coupled:
        return None
    used = spec_of_run(spec)
    seen: dict[str, Any] = {
        "criterion": {k: v for k, v in used["criterion"].items() if k != "average"},
        "quantization": used["quantization"],
        "declared": used["groups"],
        "seed": spec.seed,
    }
    if Signal.LORA in criterion.signals:
        seen["lora"] = used["lora"]
    if criterion.signals - {Signal.WEIGHT}:
        batches = (training.calibration_batches, training.micro_batch, training.sequence_length)
        seen |= {"data": data, "batches": batches}
    return digest(["scores", FORMAT, model, sorted(groups), seen])


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 of the config and of all tensors of a model, whatever files they came from."""
    found = hashlib.sha256(_config_text(model).encode())
    for name, value in model.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        found.update(plain.view(torch.uint8).numpy().data)
    return found.hexdigest()


def questions_fingerprint(questions: Questions, device: torch.device) -> str:
    """Of what is measured, the contents of local files in it, and the kind of device that time is measured on."""
    names = [*questions.texts, *(task.partition("=")[2] or task for task in questions.tasks)]
    files = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names if Path(name).is_file()}
    return digest([questions.model_dump(mode="json"), files, device.type])


def digest(value: Any) -> str:
    """The first letters of the sha256 of a plain value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def idle_axes(grid: Grid) -> list[str]:
    """Where an axis changes nothing, so that cells are the same run and computed once, in words."""
    used = {id(cell): json.dumps(effective(cell.spec), sort_keys=True) for cell in grid.cells}
    notes = []
    for axis in [name for name in grid.cells[0].labels if name != "model"]:
        alike: dict[Any, list[Any]] = {}
        for cell in grid.cells:
            others = tuple(v for k, v in cell.labels.items() if k != axis)
            alike.setdefault((others, cell.seed, used[id(cell)]), []).append(cell)
        same = [cell for cells in alike.values() if len(cells) > 1 for cell in cells]
        if same:
            notes.append(f"'{axis}' changes nothing in {grid.described(same)}: what is the same run is computed once")
    return notes


def _config_text(model: nn.Module) -> str:
    config: Mapping[str, Any] = model.config.to_dict() if hasattr(model, "config") else {}  # type: ignore[operator,union-attr]
    kept = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}
    return json.dumps(kept, sort_keys=True, default=str)
