"""A saved model is tuned by stock peft in a stock Trainer, and the adapter loads on the folder again."""

import pytest
import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from graphprune import demo
from tests.interop.folders import ids, load, logits

peft = pytest.importorskip("peft")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_folder_is_tuned_and_the_adapter_comes_back(folder, tmp_path):
    text = demo.calibration_path().read_text(encoding="utf-8")[:40_000]
    stream = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    rows = [{"input_ids": row, "labels": row} for row in stream[: 64 * 64].reshape(-1, 64)]
    model = peft.get_peft_model(load(folder), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-3:]) < sum(losses[:3])

    model.save_pretrained(tmp_path / "adapter")
    tokens, model = ids(folder), model.eval()
    again = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, tokens), logits(model, tokens), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(again.merge_and_unload(), tokens), logits(model, tokens), rtol=0, atol=1e-3)
