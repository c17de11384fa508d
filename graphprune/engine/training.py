"""A transformers Trainer, set up from a spec."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from graphprune import processes
from graphprune.engine.data import collate
from graphprune.engine.interrupts import StopAtStep
from graphprune.engine.marks import checkpoints
from graphprune.engine.progress import ProgressLine
from graphprune.engine.rescue import Rescue
from graphprune.errors import DivergedError, NonFiniteError, SpecError
from graphprune.names import bare
from graphprune.schema import PruneSpec, Training


def train(
    model: nn.Module,
    data: Dataset[Any],
    spec: PruneSpec,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    folder: Path | None = None,
    resume: Path | None = None,
) -> list[dict[str, float]]:
    """Trains what is trainable in ``model`` for ``spec.training.steps`` optimizer steps.

    AdamW on the mean loss of ``batch_size`` sequences, accumulated over micro-batches; the same data, spec and
    machine give the same result, also in several parts.

    Args:
        model: with adapters, or whole.
        data: examples for :func:`graphprune.engine.data.collate`.
        spec: ``training`` and ``seed`` are read.
        callbacks: of the Trainer; with a ``folder`` one of them completes checkpoints in ``on_save``.
        progress: whether to draw how far it is.
        folder: where to keep the last two checkpoints; nothing is written where it is None.
        resume: a whole checkpoint to continue from. Where it is of the last step, its state is read and nothing
            is trained.

    Returns:
        The Trainer's log: one mapping with step, loss and learning rate per ``logging_steps`` steps.

    Raises:
        Interrupted: a signal ended it (only with a ``folder``); the last finished step is in a checkpoint.
        DivergedError: it diverged. With a ``folder`` the step before is in a checkpoint.
    """
    line = ProgressLine("tuning") if progress and processes.is_main() else None
    stop, rescue = StopAtStep(), Rescue()
    # The Trainer switches it off in the model's config for good; saved checkpoints would generate without a cache.
    use_cache = getattr(getattr(bare(model), "config", None), "use_cache", None)
    with ExitStack() as stack:
        place = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="graphprune-"))
        own = [_Resumed(spec.training), *([_KeepTwo(), rescue, stop] if folder else [])]
        trainer = Trainer(
            model=model,
            args=arguments(spec.training, spec.seed, str(place), save=folder is not None),
            train_dataset=data,
            data_collator=collate,
            callbacks=[*callbacks, *([line] if line else []), *own],
        )
        trainer.remove_callback(PrinterCallback)  # prints every log line to standard output
        try:
            with stop.listening() if folder else nullcontext():
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except _AtTheEndError:
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        except NonFiniteError as error:
            if folder is not None:
                rescue.save(trainer)
            raise DivergedError(str(error)) from error
        finally:
            _restore(bare(model), use_cache, spec.training.gradient_checkpointing)
            if line is not None:
                line.close()
    return list(trainer.state.log_history)


class _AtTheEndError(Exception):
    """Nothing is left to train."""


class _Resumed(TrainerCallback):
    """What a Trainer leaves out when it resumes."""

    def __init__(self, training: Training) -> None:
        self._learning_rate = training.learning_rate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The settings are the spec's: they may have been changed, and the checkpoint brings its own."""
        state.save_steps, state.logging_steps = int(args.save_steps), int(args.logging_steps)
        scheduler = kwargs["lr_scheduler"]
        for group in scheduler.optimizer.param_groups:
            group["lr"] *= self._learning_rate / group["initial_lr"]  # exactly 1 where they agree
            group["initial_lr"] = self._learning_rate
        scheduler.base_lrs = [self._learning_rate for _ in scheduler.base_lrs]
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]  # what log lines show

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After its last step a Trainer would do one more: it looks at the number only after a step."""
        if state.global_step >= state.max_steps:
            raise _AtTheEndError


class _KeepTwo(TrainerCallback):
    """Removes all checkpoints but the last two, when the last one is whole; a Trainer would before."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for old in checkpoints(str(args.output_dir))[2:] if args.should_save else []:
            shutil.rmtree(old, ignore_errors=True)


def arguments(training: Training, seed: int, folder: str, *, save: bool = False) -> TrainingArguments:
    """The Trainer's arguments for the ``training`` section of a spec; with ``save``, checkpoints go to ``folder``.

    Of several processes each takes its share of a batch; of several accelerators one process uses one.

    Raises:
        SpecError: if a batch cannot be shared out evenly.
    """
    micro_batch, accumulation = shared_out(training)
    options: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": training.steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
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
        "save_strategy": "steps" if save else "no",
        "save_steps": max(training.save_every, 1),
        "report_to": "none",
        "disable_tqdm": True,
    }
    if training.gradient_checkpointing:
        options.update(_checkpointing())
    made = TrainingArguments(**options)
    if made.n_gpu > 1:
        made._n_gpu = 1  # otherwise a Trainer trains copies on all of them, in threads
    return made


def shared_out(training: Training) -> tuple[int, int]:
    """Sequences per forward pass, and forward passes per optimizer step, of each of the processes that there are.

    Raises:
        SpecError: if a batch cannot be shared out evenly.
    """
    count, size = processes.count(), training.batch_size
    micro_batch = training.micro_batch_size or max(size // count, 1)
    if size % (micro_batch * count):
        raise SpecError(
            f"training.batch_size: expected a multiple of {micro_batch * count} for {count} processes with "
            f"{micro_batch} sequences per forward pass each, got {size}. Change batch_size, micro_batch_size or the "
            "number of processes"
        )
    return micro_batch, size // (micro_batch * count)


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
