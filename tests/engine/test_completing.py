"""Trainings without pruning: marked checkpoints, and divergence with group and step."""

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from graphprune.engine.completing import CompletingCallback
from graphprune.engine.marks import fault
from graphprune.errors import CheckpointError, NonFiniteError


@pytest.fixture
def step(tmp_path):
    state = TrainerState(max_steps=9)
    state.global_step = 4
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, TrainerControl()


def test_a_checkpoint_is_marked(step, tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "weights").write_text("w")
    CompletingCallback([]).on_save(*step)
    assert fault(tmp_path / "checkpoint-4") is None


def test_of_several_processes_one_marks(step, tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    other = type("Other", (), {"output_dir": str(tmp_path), "should_save": False})()
    CompletingCallback([]).on_save(other, *step[1:])
    assert fault(tmp_path / "checkpoint-4") is not None


def test_a_checkpoint_that_cannot_be_marked_is_said(step):
    with pytest.raises(CheckpointError, match=r"checkpoint-4 cannot be written"):
        CompletingCallback([]).on_save(*step)


def test_gradients_that_are_no_numbers_stop_it(step, llama, graph):
    callback = CompletingCallback(graph.select(role="mlp.channel"))
    weight = llama.model.layers[1].mlp.up_proj.weight
    weight.grad = torch.zeros_like(weight)
    callback.on_pre_optimizer_step(*step, model=llama)
    weight.grad[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"group 'model\.layers\.1\.mlp/mlp\.channel': .* at step 5\."):
        callback.on_pre_optimizer_step(*step, model=llama)
