"""What cutting units out while training saves: ratios of processor time, measured side by side in one run.

    python benchmarks/compaction.py [--rounds 5 --steps 60 --runs 1 --hidden 1024 --layers 4 --tokens 128]

``step``: a LoRA step (forward, backward, AdamW) of a model that was compacted to half of its heads and channels, over
the step of the dense model with the same adapters; medians of interleaved rounds. ``run``: a whole joint run to a half
with compaction, over the same run under masks: the same number of steps, scores at every one up to the last event.
Weights are random, and the clock counts processor time of this process, so that other work on the machine matters
little.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import torch
import typer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

import graphprune as gp
from graphprune.engine.adapters import attach
from graphprune.engine.compact import Compactor
from graphprune.schema import Lora, PruneSpec

VOCAB = 1024


def main(
    rounds: int = 5,
    steps: int = 60,
    runs: int = 1,
    hidden: int = 1024,
    layers: int = 4,
    tokens: int = 128,
    batch: int = 1,
    threads: int = 1,
) -> None:
    """Prints one JSON line with both ratios and what they were made of."""
    torch.set_num_threads(threads)
    graph = gp.trace(make(hidden, layers))
    found = {
        "step": step_ratio(graph, hidden, layers, (batch, tokens), rounds),
        "run": run_ratio(graph, hidden, layers, (batch, tokens), steps, runs),
        "shape": {"hidden": hidden, "layers": layers, "batch": batch, "tokens": tokens},
        "machine": f"{platform.machine()}, {threads} threads, torch {torch.__version__}",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    print(json.dumps(found))
    print("\n| | ratio | goal |\n|---|---|---|")
    print(f"| optimizer step at 50 % with compaction / dense LoRA step | {found['step']['ratio']:.2f} | ≤ 0.65 |")
    print(f"| whole run to 50 % with compaction / with masks only | {found['run']['ratio']:.2f} | ≤ 0.85 |")


def step_ratio(
    graph: gp.DependencyGraph, hidden: int, layers: int, shape: tuple[int, int], rounds: int
) -> dict[str, Any]:
    """A step of the compacted model over one of the dense model."""
    plan = gp.PrunePlan.remove(graph, {g.name: range(0, g.size, 2) for g in pruned(graph)})
    takers: dict[str, Callable[[], None]] = {}
    for name in ("dense", "compacted"):
        model = adapted(graph, hidden, layers)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        step = stepper(model, optimizer, shape)
        step()  # the optimizer has its state now, which is cut as well
        if name == "compacted":
            Compactor(model, graph, optimizer).cut(plan)
        step()
        takers[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in takers}
    for _ in range(rounds):
        for name, step in takers.items():
            seconds[name].append(timed(step))
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    return {"ratio": medians["compacted"] / medians["dense"], "seconds": medians}


def run_ratio(
    graph: gp.DependencyGraph, hidden: int, layers: int, shape: tuple[int, int], steps: int, runs: int
) -> dict[str, Any]:
    """A whole run with compaction over one with masks."""
    seconds: dict[str, list[float]] = {"auto": [], "never": []}
    losses: dict[str, float] = {}
    plans: dict[str, gp.PrunePlan] = {}
    for _ in range(runs):
        for compact, taken in seconds.items():
            model = adapted(graph, hidden, layers)
            callback = gp.PruneCallback(spec(compact, steps), graph)
            trainer = make_trainer(model, shape, steps, callback)
            taken.append(timed(trainer.train))
            losses[compact] = next(
                row["train_loss"] for row in reversed(trainer.state.log_history) if "train_loss" in row
            )
            plans[compact] = callback.plan
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    return {
        "ratio": medians["auto"] / medians["never"],
        "seconds": medians,
        "train_loss": losses,
        "same_plan": plans["auto"] == plans["never"],
    }


def make(hidden: int, layers: int) -> LlamaForCausalLM:
    """A decoder with random weights, always the same."""
    torch.manual_seed(0)
    heads = hidden // 64
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        intermediate_size=hidden * 11 // 4,
        vocab_size=VOCAB,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def pruned(graph: gp.DependencyGraph) -> list[gp.Group]:
    """The groups of both targets."""
    return [*graph.select(role="attention.group"), *graph.select(role="mlp.channel")]


def adapted(graph: gp.DependencyGraph, hidden: int, layers: int) -> nn.Module:
    """The model with fresh adapters, always the same."""
    model = make(hidden, layers)
    return attach(model, graph, pruned(graph), Lora(r=8, alpha=16, dropout=0.0))


def spec(compact: str, steps: int) -> PruneSpec:
    """Half of everything, in twenty events or at every step."""
    return PruneSpec.model_validate(
        {
            "targets": [{"role": ["attention.group", "mlp.channel"], "ratio": 0.5}],
            "schedule": {"every": max(1, steps // 20)},
            "training": {"compact": compact},
        }
    )


def make_trainer(model: nn.Module, shape: tuple[int, int], steps: int, callback: gp.PruneCallback) -> Trainer:
    """A Trainer that writes nothing."""
    rows = torch.randint(0, VOCAB, (steps * shape[0], shape[1]), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="graphprune-"),
        max_steps=steps,
        per_device_train_batch_size=shape[0],
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    return trainer


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, int]) -> Callable[[], None]:
    """One optimizer step."""
    ids = torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(action: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    action()
    return time.process_time() - start


if __name__ == "__main__":
    typer.run(main)
