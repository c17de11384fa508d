"""PruneCallback inside trl's SFTTrainer, as people tune on instructions."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import graphprune as gp
from graphprune import demo
from graphprune.engine.callback import PruneCallback

trl = pytest.importorskip("trl", reason="trl is not installed (pip install trl)")
datasets = pytest.importorskip("datasets", reason="trl needs the package datasets")

SPEC = {
    "targets": [{"role": ["attention.group", "mlp.channel"], "ratio": 0.5, "layers": "1:"}],
    "criterion": "lora",
    "schedule": {"every": 2, "warmup": 0.0, "cooldown": 0.25},
}
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def text_rows():
    text = Path(demo.calibration_path()).read_text(encoding="utf-8")
    return datasets.Dataset.from_dict({"text": [text[i : i + 300] for i in range(0, 9000, 300)]})


def chat_rows():
    """Prompts and answers: the loss is of answers, and sequences are padded."""
    questions = [f"What is {a} plus {b}?" for a in range(6) for b in range(5)]
    return datasets.Dataset.from_dict({"prompt": questions, "completion": [q[8:-1] for q in questions]})


def tuned(folder, rows, **options):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    model = AutoModelForCausalLM.from_pretrained(demo.model_path())
    callback = PruneCallback(SPEC)
    arguments = trl.SFTConfig(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_length=64,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **{"bf16": False, "gradient_checkpointing": False, **options},
    )
    trainer = trl.SFTTrainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback],
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    return trainer.model, callback


@pytest.mark.parametrize("rows", [text_rows, chat_rows])
@pytest.mark.parametrize(
    "options", [{}, {"packing": True}, {"bf16": True, **CHECKPOINTING}], ids=["plain", "packed", "mixed"]
)
def test_it_prunes_to_exactly_the_target(options, rows, tmp_path):
    model, callback = tuned(tmp_path, rows(), **options)
    assert {len(u) for n, u in callback.plan.removed.items() if n.endswith("mlp.channel")} == {256}
    assert {len(u) for n, u in callback.plan.removed.items() if n.endswith("attention.group")} == {2}
    assert len(callback.plan.removed) == 10 and callback.events[-1].fraction == 1.0
    model.eval()
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        with gp.masked(model, callback.plan, callback.graph):
            expected = model(ids).logits
        small = gp.reshape(model.merge_and_unload(), callback.plan, callback.graph)
        rounding = 0.05 if options.get("bf16") else 1e-3  # the Trainer leaves its autocast on the wrapped model
        assert (small(ids).logits - expected).abs().max() < rounding * expected.abs().max()


def test_recomputed_activations_give_the_same_plan(tmp_path):
    plain, recomputed = (tuned(tmp_path, text_rows(), **options)[1] for options in ({}, CHECKPOINTING))
    assert plain.plan == recomputed.plan
