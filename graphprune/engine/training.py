"""A transformers Trainer, set up from a spec."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from graphprune.engine.data import collate
from graphprune.engine.progress import ProgressLine
from graphprune.names import bare
from graphprune.schema import PruneSpec, Training


def train(
    model: nn.Module,
    data: Dataset[Any],
    spec: PruneSpec,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
) -> list[dict[str, float]]:
    """Trains what is trainable in ``model`` for ``spec.training.steps`` optimizer steps.

    AdamW on the mean loss of ``batch_size`` sequences, accumulated over micro-batches; the same data, spec and
    machine give the same result. Nothing is written: the Trainer's folder is temporary.

    Returns:
        The Trainer's log: one mapping with step, loss and learning rate per ``logging_steps`` steps.
    """
    line = ProgressLine("tuning") if progress else None
    # The Trainer switches it off in the model's config for good; saved checkpoints would generate without a cache.
    use_cache = getattr(getattr(bare(model), "config", None), "use_cache", None)
    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        trainer = Trainer(
            model=model,
            args=arguments(spec.training, spec.seed, folder),
            train_dataset=data,
            data_collator=collate,
            callbacks=[*callbacks, *([line] if line else [])],
        )
        trainer.remove_callback(PrinterCallback)  # prints every log line to standard output
        try:
            trainer.train()
        finally:
            _restore(bare(model), use_cache, spec.training.gradient_checkpointing)
            if line is not None:
                line.close()
    return list(trainer.state.log_history)


def arguments(training: Training, seed: int, folder: str) -> TrainingArguments:
    """The Trainer's arguments for the ``training`` section of a spec."""
    options: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": training.steps,
        "per_device_train_batch_size": training.micro_batch,
        "gradient_accumulation_steps": training.accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler,
        "warmup_steps": int(training.warmup_ratio * training.steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "logging_steps": training.logging_steps,
        "optim": "adamw_torch",
        "seed": seed,
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "dataloader_drop_last": True,  # a smaller last batch would weigh its sequences more
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if training.gradient_checkpointing:
        options.update(_checkpointing())
    return TrainingArguments(**options)


def _restore(model: Any, use_cache: bool | None, checkpointing: bool) -> None:
    if use_cache is not None:
        model.config.use_cache = use_cache
    if checkpointing:
        # transformers 5 renames the method on its way.
        new = getattr(model, "activation_checkpointing_disable", None)
        (new or model.gradient_checkpointing_disable)()


def _checkpointing() -> dict[str, Any]:
    """Non-reentrant: the inputs of the first block need no gradient, as frozen embeddings give none."""
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # transformers 5 renames the option on its way.
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
