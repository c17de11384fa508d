"""What is kept of a training that diverged; that it is the right state, tests/engine/test_run.py shows."""

import random

import numpy as np
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from graphprune.engine.marks import mark
from graphprune.engine.rescue import Rescue


class Told:
    """A Trainer that notes what is saved, and where the generators were."""

    def __init__(self, folder):
        self.args = TrainingArguments(output_dir=str(folder), use_cpu=True)
        self.state, self.control, self.model = TrainerState(max_steps=9), TrainerControl(), torch.nn.Linear(1, 1)
        self.state.global_step = 4
        self.callback_handler = self
        self.saved = []

    def _save_checkpoint(self, model, trial):
        assert model is self.model
        assert trial is None
        self.saved.append(drawn())

    def on_save(self, args, state, control):
        self.saved.append("marked")


def drawn():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_the_generators_are_those_of_the_end_of_the_step(tmp_path):
    trainer, rescue = Told(tmp_path), Rescue()
    rescue.on_step_end(trainer.args, trainer.state, trainer.control)
    expected = drawn()
    drawn()
    rescue.save(trainer)
    assert trainer.saved == [expected, "marked"]


def test_nothing_is_written_before_the_first_step_or_twice(tmp_path):
    trainer, rescue = Told(tmp_path), Rescue()
    rescue.save(trainer)
    rescue.on_step_end(trainer.args, trainer.state, trainer.control)
    (tmp_path / "checkpoint-4").mkdir()
    mark(tmp_path / "checkpoint-4")
    rescue.save(trainer)
    assert trainer.saved == []
