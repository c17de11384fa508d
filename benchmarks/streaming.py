"""What cutting a checkpoint costs beside copying it: time and memory of ``gp.apply``. Table of docs/benchmarks.md.

    python benchmarks/streaming.py --gigabytes 8.5 --folder /tmp/streaming

Writes a checkpoint of random numbers in several shards (the shape of an 8B Llama, bfloat16), copies and cuts it in
turn, and removes everything again; three times its size must be free. Every run ends with ``sync``, so that what counts
is on the disk, and a run of ``apply`` begins with starting Python. ``warm`` runs find the source in the page cache, as
far as it fits there; ``cold`` ones do not: it is evicted before. Processor seconds say more on a shared machine. Memory
is the kernel's count in a process of its own, Python and torch included.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import typer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import graphprune as gp
from graphprune.trace import trace

HIDDEN, CHANNELS, HEADS, GROUPS, VOCABULARY = 4096, 14336, 32, 8, 32000
SHARD = 2e9
#: What goes, by what it means for a tensor in its file.
PLANS: dict[str, Callable[[gp.DependencyGraph], dict[str, Any]]] = {
    "every second layer": lambda graph: {g.name: range(1, g.size, 2) for g in graph.select(role="layer")},
    "half of all heads and channels": lambda graph: {
        g.name: torch.randperm(g.size)[: g.size // 2].tolist()
        for g in graph.select(role=["attention.group", "mlp.channel"])
    },
    "a tenth of all channels": lambda graph: {
        g.name: torch.randperm(g.size)[: g.size // 10].tolist() for g in graph.select(role="mlp.channel")
    },
    "a quarter of the hidden size": lambda graph: {
        g.name: torch.randperm(g.size)[: g.size // 4].tolist() for g in graph.select(role="hidden")
    },
}
app = typer.Typer(add_completion=False, help=__doc__)


def config_of(layers: int) -> LlamaConfig:
    """A Llama of that many layers."""
    return LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=CHANNELS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def hollow(layers: int) -> LlamaForCausalLM:
    """The model without weights."""
    with torch.device("meta"):
        return LlamaForCausalLM(config_of(layers)).to(torch.bfloat16)


def generate(folder: Path, gigabytes: float) -> int:
    """Writes the checkpoint; the number of its layers."""
    sizes = [sum(p.numel() * 2 for p in hollow(n).parameters()) for n in (1, 2)]
    layers = max(2, round((gigabytes * 1e9 - 2 * sizes[0] + sizes[1]) / (sizes[1] - sizes[0])))
    layers += layers * (sizes[1] - sizes[0]) + 2 * sizes[0] - sizes[1] < gigabytes * 1e9
    folder.mkdir(parents=True)
    config_of(layers).save_pretrained(folder)
    shards: list[dict[str, torch.Size]] = [{}]
    for name, tensor in hollow(layers).state_dict().items():
        if sum(s.numel() * 2 for s in shards[-1].values()) + tensor.numel() * 2 > SHARD:
            shards.append({})
        shards[-1][name] = tensor.shape
    index: dict[str, str] = {}
    for i, shapes in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        noise = torch.randn(max(s.numel() for s in shapes.values()), dtype=torch.bfloat16)
        tensors = {name: (noise[: s.numel()] + i).reshape(s) for name, s in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shapes, file))
        print(f"wrote {file}", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return layers


def evict(folder: Path) -> None:
    """Lets the page cache forget a folder that is on the disk already."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(folder: Path) -> None:
    """Brings a folder into the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def timed(command: list[str], target: Path, source: Path, *, cold: bool) -> tuple[float, float, str]:
    """Seconds until what a command writes is on the disk, seconds of processors, and what it printed."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    (evict if cold else read)(source)
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    os.sync()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - began, worked, done.stdout


@app.command()
def child(source: Path, plan: Path, target: Path) -> None:
    """One run, with its memory and the time that went before the first byte."""
    peak = {"RssAnon": 0, "VmRSS": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) // 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    first: list[float] = []
    note = lambda *_: first or first.append(time.perf_counter() - began)  # noqa: E731
    gp.apply(source, plan, target, prove=False, progress=note)  # a proof is no part of what is measured
    stop.set()
    watcher.join()
    print(json.dumps({**peak, "planning": first[0], "total": time.perf_counter() - began}))


@app.command()
def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the checkpoint.")] = 8.5,
    folder: Annotated[Path, typer.Option(help="Where to write it; removed in the end.")] = Path("/tmp/streaming"),
    rounds: Annotated[int, typer.Option(help="How often each is timed.")] = 2,
    cold: Annotated[bool, typer.Option(help="Also with a source that is not in the page cache.")] = True,
    only: Annotated[str, typer.Option(help="Only what has this in its name.")] = "",
) -> None:
    """Times copying and cutting in turn, and prints the table."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    try:
        source, target = folder / "model", folder / "written"
        layers = generate(source, gigabytes)
        graph = trace(hollow(layers).to(torch.bfloat16))
        size = sum(f.stat().st_size for f in source.iterdir())
        print(f"{size / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} shards, {layers} layers", flush=True)
        print(
            "| what goes | source | cp | apply | apply / cp | processor s | first byte | anonymous MiB | resident MiB |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for what, units in ((name, units) for name, units in PLANS.items() if only in name):
            plan = folder / "plan.json"
            gp.PrunePlan.remove(graph, units(graph)).save(plan)
            for state in (False, True) if cold else (False,):
                copies, cuts, told = [], [], {}
                for _ in range(rounds):
                    copies.append(timed(["cp", "-r", str(source), str(target)], target, source, cold=state))
                    command = [sys.executable, __file__, "child", str(source), str(plan), str(target)]
                    cuts.append(timed(command, target, source, cold=state))
                    told = json.loads(cuts[-1][2].splitlines()[-1])
                copy, cut, copied, worked = (statistics.median(t[i] for t in k) for i in (0, 1) for k in (copies, cuts))
                print(
                    f"| {what} | {'cold' if state else 'warm'} | {copy:.1f} s | {cut:.1f} s | {cut / copy:.2f} | "
                    f"{copied:.1f}, {worked:.1f} | "
                    f"{told['planning']:.1f} s | {told['RssAnon']} | {told['VmRSS']} |",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] not in (["child"], ["main"]):
        sys.argv.insert(1, "main")
    app()
