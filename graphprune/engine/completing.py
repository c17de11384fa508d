"""What a training without pruning needs from a callback: checkpoints that are known to be whole, and a check."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from graphprune import processes
from graphprune.engine.finite import check_gradients, nonfinite_gradients
from graphprune.engine.marks import mark
from graphprune.errors import CheckpointError
from graphprune.graph import Group


class CompletingCallback(TrainerCallback):
    """Marks every checkpoint when it is whole, and stops a training that has diverged.

    Args:
        groups: by which errors say where gradients are no numbers.

    Raises:
        NonFiniteError: during training, for gradients that are NaN or infinite.
        CheckpointError: if a checkpoint cannot be written.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups = tuple(groups)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_gradients(nonfinite_gradients(kwargs["model"]), self._groups, state.global_step + 1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        processes.wait()  # every process writes files of its own
        try:
            if args.should_save:
                mark(folder)
        except OSError as error:
            raise CheckpointError(f"the checkpoint {folder} cannot be written: {error}") from error
        processes.wait()  # none goes on, or ends, before it is whole
