"""A training that has diverged keeps the state of the last step that was in order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from graphprune.engine.marks import fault


class Rescue(TrainerCallback):
    """Writes a checkpoint of the step before the one that failed.

    Gradients that are no numbers are found before the optimizer uses them, so weights, moments and averages are still
    those of the step before. Only the random number generators have moved on; their state is noted after every step.
    """

    def __init__(self) -> None:
        self._random: dict[str, Any] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._random = {"python": random.getstate(), "cpu": torch.get_rng_state()}
        self._random["numpy"] = np.random.get_state()  # noqa: NPY002 what the Trainer saves, and data sets may use
        if torch.cuda.is_available():
            self._random["cuda"] = torch.cuda.get_rng_state_all()

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint as the Trainer would have; nothing before the first step, or where it is there."""
        folder = Path(str(trainer.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        if not self._random or fault(folder) is None:
            return
        random.setstate(self._random["python"])
        np.random.set_state(self._random["numpy"])  # noqa: NPY002
        torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random:
            torch.cuda.set_rng_state_all(self._random["cuda"])
        assert trainer.model is not None
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
