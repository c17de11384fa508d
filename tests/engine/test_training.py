import copy
import io

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graphprune import processes
from graphprune.engine.adapters import attach
from graphprune.engine.completing import CompletingCallback
from graphprune.engine.data import load_blocks
from graphprune.engine.marks import checkpoints, last_checkpoint
from graphprune.engine.progress import ProgressLine
from graphprune.engine.training import arguments, shared_out, train
from graphprune.errors import SpecError
from graphprune.schema import Lora, PruneSpec, Training


def make_spec(**training):
    usual = {"steps": 4, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-2, "logging_steps": 1}
    return PruneSpec.model_validate(
        {"targets": [{"role": "mlp.channel", "ratio": 0.5}], "training": {**usual, **training}}
    )


def tuned(llama, graph, tokens, **training):
    torch.manual_seed(3)
    model = attach(copy.deepcopy(llama), graph, graph.select(role="mlp.channel"), Lora(r=4, dropout=0.0))
    data = load_blocks(tokens, sequence_length=16)
    log = train(model, data, make_spec(**training), progress=False)
    return log, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("count", "size", "micro", "expected"), [(1, 12, None, (12, 1)), (2, 12, None, (6, 1)), (3, 12, 2, (2, 2))]
)
def test_processes_share_out_a_batch(count, size, micro, expected, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: count)
    assert shared_out(Training(batch_size=size, micro_batch_size=micro)) == expected


def test_a_batch_that_cannot_be_shared_out_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(SpecError, match=r"expected a multiple of 8 for 2 processes with 4 sequences .* got 12"):
        shared_out(Training(batch_size=12, micro_batch_size=4))
    with pytest.raises(SpecError, match=r"expected a multiple of 2 .* got 1"):
        shared_out(Training(batch_size=1))


def test_one_process_uses_one_of_several_accelerators(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: vars(self).get("_n_gpu") or 4))
    assert arguments(Training(), 0, str(tmp_path)).n_gpu == 1


def test_the_section_reaches_the_trainer(tmp_path):
    training = Training(
        steps=50,
        learning_rate=3e-4,
        batch_size=12,
        micro_batch_size=4,
        weight_decay=0.1,
        warmup_ratio=0.1,
        lr_scheduler="linear",
        max_grad_norm=0.5,
        logging_steps=7,
    )
    made = arguments(training, 5, str(tmp_path))
    assert made.max_steps == 50
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (4, 3)
    assert (made.learning_rate, made.weight_decay, made.warmup_steps) == (3e-4, 0.1, 5)
    assert (made.lr_scheduler_type, made.max_grad_norm, made.logging_steps) == ("linear", 0.5, 7)
    assert (made.seed, made.save_strategy, made.report_to) == (5, "no", [])


def test_the_same_seed_gives_the_same_factors_and_log(llama, graph, tokens):
    first, second = (tuned(llama, graph, tokens) for _ in range(2))
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert [row["loss"] for row in first[0][:-1]] == [row["loss"] for row in second[0][:-1]]
    assert [row["step"] for row in first[0][:-1]] == [1, 2, 3, 4]


def test_training_lowers_the_loss_of_what_it_reads(llama, graph, tokens):
    log, _ = tuned(llama, graph, tokens[:4], steps=20, lr_scheduler="constant")
    assert log[19]["loss"] < 0.9 * log[0]["loss"]


def test_micro_batches_and_checkpointing_do_not_change_the_result(llama, graph, tokens):
    plain, split, recomputed = (
        tuned(llama, graph, tokens, **options)[0]
        for options in ({}, {"micro_batch_size": 2}, {"gradient_checkpointing": True})
    )
    for log in (split, recomputed):
        assert [row["loss"] for row in plain[:-1]] == pytest.approx([row["loss"] for row in log[:-1]], rel=1e-4)


def test_nothing_is_written_to_standard_output(llama, graph, tokens, capsys):
    tuned(llama, graph, tokens)
    assert capsys.readouterr().out == ""


def test_the_last_two_checkpoints_are_kept_and_settings_of_output_may_change(llama, graph, tokens, tmp_path):
    """Interrupted by an error after step 3, where every step is saved, and resumed to save and log at every second."""

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise InterruptedError

    def part(callbacks, **training):
        model = attach(copy.deepcopy(llama), graph, graph.select(role="mlp.channel"), Lora(r=4, dropout=0.0))
        options = {"progress": False, "folder": tmp_path, "resume": last_checkpoint(tmp_path)}
        data = load_blocks(tokens, sequence_length=16)
        return train(
            model, data, make_spec(steps=6, **training), callbacks=[CompletingCallback([]), *callbacks], **options
        )

    with pytest.raises(InterruptedError):
        part([Break()], save_every=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    log = part([], save_every=2, logging_steps=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-4"]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 6]


def test_the_progress_line_tells_steps_and_loss(tmp_path):
    text = io.StringIO()
    line = ProgressLine("tuning", Console(file=text, width=120))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(max_steps=8, is_world_process_zero=True), TrainerControl()
    line.on_train_begin(args, state, control)
    state.global_step = 3
    line.on_step_end(args, state, control)
    line.on_log(args, state, control, logs={"loss": 1.25})
    line.close()
    assert "tuning" in text.getvalue()
    assert "3/8" in text.getvalue()
    assert "loss 1.2500" in text.getvalue()


def test_the_model_keeps_its_config_and_its_cache(llama, graph, tokens):
    assert llama.config.use_cache is True
    data = load_blocks(tokens, sequence_length=16)
    model = attach(llama, graph, graph.select(role="mlp.channel"), Lora(r=4))
    train(model, data, make_spec(gradient_checkpointing=True), progress=False)
    assert llama.config.use_cache is True
    assert not any(getattr(module, "gradient_checkpointing", False) for module in llama.modules())
