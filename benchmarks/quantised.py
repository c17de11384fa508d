"""What a base costs in memory by precision: peak of a joint `lora` run, as a ratio of the weights in float32.

    python benchmarks/quantised.py [--hidden 1024 --layers 4 --steps 3 --kinds none,int8,nf4]

Every line is a process of its own on a random decoder, which is scored and tuned at 1 x 128 tokens: what holds the
weights once they are quantised, the most that scoring one optimizer step adds, and the most of the whole training. It
is CPU memory that the process holds, without what it held before the model was there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM
from typing_extensions import Self

app = typer.Typer(add_completion=False, help=__doc__)
#: glibc keeps freed blocks otherwise, and a peak says nothing.
_HONEST = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


@app.command()
def main(
    hidden: int = 1024,
    layers: int = 4,
    steps: int = 3,
    kinds: Annotated[str, typer.Option(help="none, int8, nf4, fp4")] = "none,int8,nf4",
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures every kind in a process of its own and prints the table."""
    if one:
        print(json.dumps(_measured(one, hidden, layers, steps)))
        return
    rows = {}
    for kind in kinds.split(","):
        command = [sys.executable, __file__, "--one", kind]
        options = ["--hidden", str(hidden), "--layers", str(layers), "--steps", str(steps)]
        environment = {**os.environ, **_HONEST}
        done = subprocess.run([*command, *options], check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        rows[kind] = json.loads(done.stdout.splitlines()[-1])
    print(f"hidden {hidden}, {layers} layers, {steps} steps of 1 x 128 tokens; MiB (ratio to the float32 weights)\n")
    print("| base | weights held | scoring adds | training, peak | s/step |\n|---|---|---|---|---|")
    for kind, row in rows.items():
        whole = row["float32"]
        cells = [f"{row[name]:.0f} ({row[name] / whole:.2f})" for name in ("base", "score", "train")]
        print(f"| {kind} | {' | '.join(cells)} | {row['seconds']:.2f} |")


def _measured(kind: str, hidden: int, layers: int, steps: int) -> dict[str, Any]:
    from graphprune.engine.adapters import attach
    from graphprune.engine.quantise import quantisable, quantised
    from graphprune.observe import Observer
    from graphprune.schema import PruneSpec, Quantization
    from graphprune.score import score_groups
    from graphprune.trace import trace

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        vocab_size=512,
        max_position_embeddings=128,
    )
    with torch.device("meta"):
        graph = trace(LlamaForCausalLM(config))
    _warm()
    before = _held()
    model: Any = LlamaForCausalLM(config)
    whole = sum(p.numel() * 4 for p in model.parameters()) / 2**20
    cpu = torch.device("cpu")
    if kind != "none":
        settings = Quantization(kind=kind)  # type: ignore[arg-type]
        model = quantised(model, quantisable(model, graph, settings, cpu), settings, cpu, consume=True)
    base = _held() - before
    spec = PruneSpec.model_validate({"targets": [{"role": "mlp.channel", "ratio": 0.5}], "lora": {"dropout": 0}})
    groups = tuple(graph.select(role="mlp.channel"))
    wrapped = attach(model, graph, groups, spec.lora).train()
    tuned = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned)
    criterion = spec.criterion.build()
    scoring = []
    start = time.perf_counter()
    with _Peak() as training, Observer(wrapped, graph, groups, criterion.signals) as seen:
        for _ in range(steps):
            ids = torch.randint(0, 512, (1, 128))
            wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            held = _held()
            with _Peak() as peak:
                score_groups(criterion, groups, seen)
            scoring.append(peak.most - held)
            seen.reset()
            optimizer.step()
            optimizer.zero_grad()
    seconds = (time.perf_counter() - start) / steps
    peaks = {"score": max(scoring), "train": training.most - before}
    return {"float32": whole, "base": base, **peaks, "seconds": seconds}


def _warm() -> None:
    """Loads what the first step of any run loads."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    layer = torch.nn.Linear(64, 64)
    layer(torch.ones(1, 64)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


class _Peak:
    """The most memory that the process held inside of the ``with`` block, in MiB, looked at every millisecond."""

    def __enter__(self) -> Self:
        self.most = _held()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.most = max(self.most, _held())

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.most = max(self.most, _held())


def _held() -> float:
    """Anonymous memory of this process in MiB, so without mapped files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


if __name__ == "__main__":
    app()
