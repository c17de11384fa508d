"""Specs of half of a tiny decoder, and plain transformers Trainers that prune it."""

from __future__ import annotations

from transformers import PrinterCallback, Trainer, TrainingArguments

from graphprune.engine.data import load_blocks
from graphprune.schema import PruneSpec


def make_spec(targets, criterion="lora", compact="auto", **schedule):
    return PruneSpec.model_validate(
        {
            "targets": targets,
            "criterion": criterion,
            "training": {"compact": compact},
            "schedule": {"every": 2, "warmup": 0.0, "cooldown": 0.25, **schedule},
        }
    )


def make_trainer(model, tokens, folder, callback, steps=8, **options):
    usual = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        **{"save_strategy": "no", **usual, **options},
    )
    data = load_blocks(tokens, sequence_length=tokens.shape[1])
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    return trainer
