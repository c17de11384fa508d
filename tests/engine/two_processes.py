"""Run by torchrun in several processes: a Trainer under data parallelism, with compaction or with masks.

python -m torch.distributed.run --nproc_per_node 2 two_processes.py HOW FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

import graphprune as gp
from graphprune.engine.adapters import attach
from graphprune.engine.data import load_blocks
from graphprune.schema import Lora


def main(how: str, folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=61,
        initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    graph = gp.trace(model)
    targets = [{"role": ["attention.group", "mlp.channel"], "ratio": 0.5}]
    groups = [*graph.select(role="attention.group"), *graph.select(role="mlp.channel")]
    model = attach(model, graph, groups, Lora(r=4, dropout=0.0))
    spec = {"targets": targets, "training": {"compact": how}, "schedule": {"every": 2, "cooldown": 0.25}}
    callback = gp.PruneCallback(spec, graph)
    tokens = torch.randint(0, 61, (32, 16), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=8,
        learning_rate=1e-2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    trainer = Trainer(model, arguments, train_dataset=load_blocks(tokens, sequence_length=16), callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    found = {
        "processes": torch.distributed.get_world_size(),
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "norms": [row["grad_norm"] for row in trainer.state.log_history if "loss" in row],
        "plan": {name: list(units) for name, units in callback.plan.removed.items()},
        "compacted": len(callback.compacted.removed),
        "notes": callback.notes,
        "sum": float(
            sum(p.detach().double().abs().sum() for p in gp.reshape(model, callback.plan, graph).parameters())
        ),
    }
    (folder / f"{how}-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
