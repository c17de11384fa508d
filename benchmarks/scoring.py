"""What scoring costs beside a plain LoRA step: time, transient memory, peak memory. Tables of docs/benchmarks.md.

    python benchmarks/scoring.py time
    python benchmarks/scoring.py memory

A decoder of random weights, 4 layers of width 1024; cost does not depend on what the weights are. ``time`` takes steps
and scorings in turn, in one process and one thread, and compares CPU seconds: a shared machine changes these least.
``memory`` runs every scenario in a process of its own, by the kernel's count of resident memory, with an allocator that
hands freed memory back at once.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM

import graphprune as gp
from graphprune.engine.adapters import attach
from graphprune.engine.callback import PruneCallback
from graphprune.engine.data import load_blocks
from graphprune.engine.training import train
from graphprune.graph import DependencyGraph, Group
from graphprune.observe import Observer
from graphprune.score import score_groups
from graphprune.validate import resolve_targets

WIDTH, CHANNELS, LAYERS, VOCABULARY, LENGTH = 1024, 2752, 4, 512, 128
TARGETS = [{"role": "attention.group", "ratio": 0.5}, {"role": "mlp.channel", "ratio": 0.5}]
#: glibc keeps what it frees unless told otherwise, and then a peak says nothing of what was needed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
app = typer.Typer(add_completion=False, help=__doc__)


def spec_for(criterion: Any, **training: Any) -> gp.PruneSpec:
    """Half of all heads and channels, with adapters without dropout."""
    return gp.load_spec(
        {"targets": TARGETS, "criterion": criterion, "lora": {"dropout": 0.0}, "training": training or {"mode": "none"}}
    )


def build() -> tuple[LlamaForCausalLM, DependencyGraph]:
    """The model and its graph."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    return model, gp.trace(model)


class Loop:
    """A plain LoRA step by stock PEFT and torch, and the scoring of what it leaves behind."""

    def __init__(self, criterion: Any) -> None:
        model, graph = build()
        spec = spec_for(criterion)
        self.groups: tuple[Group, ...] = tuple(g for t in resolve_targets(spec, graph) for g in t.groups)
        self.model = attach(model, graph, self.groups, spec.lora).train()
        self.criterion = spec.criterion.build()
        self.observer = Observer(self.model, graph, self.groups, self.criterion.signals)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def step(self, batch: int) -> None:
        """Forward, backward, clipping and AdamW on ``batch`` sequences; gradients stay for the scoring."""
        self.optimizer.zero_grad()
        ids = torch.randint(0, VOCABULARY, (batch, LENGTH))
        self.model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    def score(self) -> None:
        """One scoring of every group."""
        score_groups(self.criterion, self.groups, self.observer)


@app.command("time")
def measure_time(repetitions: int = 9) -> None:
    """CPU seconds of one scoring over those of one plain LoRA step: median, smallest and largest ratio."""
    loop = Loop("lora")
    spent: dict[str, list[float]] = {}
    with loop.observer:
        for _ in range(repetitions + 1):
            for name, work in (
                ("1 sequence", lambda: loop.step(1)),
                ("score", loop.score),
                ("8 sequences", lambda: loop.step(8)),
            ):
                start = time.process_time()
                work()
                spent.setdefault(name, []).append(time.process_time() - start)
    typer.echo("| a step of | step | lora scoring | scoring / step |\n|---|---|---|---|")
    for name in ("1 sequence", "8 sequences"):
        ratios = [s / p for s, p in zip(spent["score"][1:], spent[name][1:], strict=True)]  # the first warms up
        step, score = (statistics.median(spent[which][1:]) for which in (name, "score"))
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        typer.echo(f"| {name} of {LENGTH} tokens | {step:.3f} s | {score:.3f} s | {spread} |")


@app.command("memory")
def measure_memory() -> None:
    """Transient memory of one scoring, and peaks of whole runs."""
    matrix = WIDTH * CHANNELS * 4
    rise = _child("transient", "lora")
    typer.echo(f"transient of scoring: {rise / 2**20:.2f} MiB, {rise / matrix:.3f} of the largest matrix in float32")
    plain = _child("run", "none")
    typer.echo("| run | peak | rise over the loaded model | peak / plain |\n|---|---|---|---|")
    for criterion in ("none", "lora", "taylor", "gate", "wanda", "magnitude"):
        peak, loaded = _child("run", criterion, whole=True)
        name = "plain LoRA" if criterion == "none" else f"`{criterion}`"
        typer.echo(f"| {name} | {peak / 2**20:.0f} MiB | {(peak - loaded) / 2**20:.0f} MiB | {peak / plain:.3f} |")


@app.command(hidden=True)
def transient(criterion: str) -> None:
    """In a process of its own: by how much memory rises while groups are scored, the most of five times."""
    loop = Loop(criterion)
    rises = []
    with loop.observer:
        for _ in range(6):
            loop.step(1)
            before = _memory("VmRSS")
            _forget_peak()
            loop.score()
            rises.append(_memory("VmHWM") - before)
    typer.echo(json.dumps([max(rises[1:]), 0]))


@app.command(hidden=True)
def run(criterion: str) -> None:
    """In a process of its own: the peak of six steps of four sequences, and what the loaded model takes."""
    model, graph = build()
    loaded = _memory("VmRSS")
    chosen = "lora" if criterion == "none" else criterion
    spec = spec_for(chosen, mode="joint", steps=6, batch_size=4, sequence_length=LENGTH, learning_rate=1e-4)
    groups = [g for t in resolve_targets(spec, graph) for g in t.groups]
    wrapped = attach(model, graph, groups, spec.lora)
    data = load_blocks(torch.randint(0, VOCABULARY, (24, LENGTH)), sequence_length=LENGTH)
    _forget_peak()
    train(wrapped, data, spec, callbacks=[] if criterion == "none" else [PruneCallback(spec, graph)], progress=False)
    typer.echo(json.dumps([_memory("VmHWM"), loaded]))


def _child(command: str, criterion: str, *, whole: bool = False) -> Any:
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, command, criterion], env=environment, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found if whole else found[0]


def _memory(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the peak) of this process in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "memory is measured on Linux"
    return int(found[1]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    app()
