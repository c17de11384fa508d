"""The tables of LoRAPrune that need a GPU, beside the paper's numbers, and checks that only mean something on CUDA.

    python benchmarks/gpu.py cost            # Table 4: LLaMA-7B, seconds per iteration and memory by criterion
    python benchmarks/gpu.py large           # Table 1: LLaMA-65B in 8 bits on one card
    python benchmarks/gpu.py latency         # Table 3: pruned models, LoRA merged and not
    python benchmarks/gpu.py correctness     # masks, scores, mixed precision, quantised bases, device_map

Weights are random: cost does not depend on what they are. Every scenario is a process of its own; what does not fit is
a line of the table. ``--device cpu --size tiny`` runs all of it without a GPU, to try the script; memory is resident
memory of the process then. ``--json FILE`` keeps what was measured, and on what.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch
import typer
from gpu_models import DTYPES, GIB, SIZES, machine

#: Zhang et al., LoRAPrune, https://arxiv.org/abs/2305.18403, Table 4 (LLaMA-7B, ratio 50 %, batches of 1 × 128):
#: seconds per iteration, GPU memory in G. "Vanilla" is Eq. (3), gradients of the weights.
TABLE_4 = {
    "taylor": ("Vanilla", 38.87, 38.6),
    "magnitude": ("Magnitude", 13.08, 16.8),
    "lora": ("LoRA-guided", 14.13, 18.3),
    "lora-int8": ("LoRA-guided (8-bit)", 15.63, 13.8),
}
#: The same, Table 1 (LLaMA-65B): cards of 80 G, memory in G.
TABLE_1 = {"PST": (3, 234), "LLM-Pruner": (2, 154), "LoRAPrune": (1, 72)}
#: The same, Table 3 (LLaMA-7B, 2048 tokens, mean of 100 trials): seconds unmerged and merged, by ratio in percent.
TABLE_3 = {0: (0.184, 0.105), 20: (0.120, 0.079), 50: (0.089, 0.053)}

#: glibc keeps what it frees unless told otherwise, and then a peak of resident memory says nothing.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

app = typer.Typer(add_completion=False, help=__doc__)
Device = Annotated[str, typer.Option(help="cuda, cuda:1, cpu")]
Size = Annotated[str, typer.Option(help=f"The shape of the model: {', '.join(SIZES)}")]
Dtype = Annotated[str, typer.Option(help=f"Of weights that are not quantised: {', '.join(DTYPES)}")]
Json = Annotated[Path | None, typer.Option("--json", help="Where to write what was measured.")]


@app.command()
def cost(
    device: Device = "cuda",
    size: Size = "7b",
    dtype: Dtype = "bfloat16",
    scenarios: Annotated[
        str, typer.Option(help="Which, separated by commas.")
    ] = "plain,lora,lora-int8,lora-nf4,taylor,taylor-batch,magnitude,wanda",
    batch: Annotated[int, typer.Option(help="Sequences per optimizer step, accumulated.")] = 128,
    micro_batch: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 512,
    steps: Annotated[int, typer.Option(help="Optimizer steps to time; the paper took 100.")] = 5,
    warmup: Annotated[int, typer.Option(help="Optimizer steps before.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations.")] = False,
    out: Json = None,
) -> None:
    """Table 4: seconds per iteration and peak memory of a joint run, by criterion and precision of the base."""
    place = _checked(device, size, dtype)
    shared = {"size": size, "dtype": dtype, "batch": batch, "micro_batch": micro_batch, "length": length}
    shared |= {"steps": steps, "warmup": warmup, "checkpointing": checkpointing, "device": device}
    rows = {name: _child("tuning", {**shared, "scenario": name}) for name in _named(scenarios)}
    typer.echo(f"LLaMA {size}, {dtype}, {batch} sequences of {length} tokens per iteration, {micro_batch} at a time\n")
    memory, scale = ("peak GiB", GIB) if place.type == "cuda" else ("peak RSS MiB", 2**20)
    typer.echo(
        f"| run | s/iter | / plain | / taylor | {memory} | / plain | / taylor | reserved "
        "| paper | s/iter | / vanilla | G | / vanilla |\n" + "|---" * 13 + "|"
    )
    for name, row in rows.items():
        typer.echo(_table_4(name, row, rows, scale))
    _finish(rows, shared, place, out)


def _table_4(name: str, row: dict[str, Any], rows: dict[str, dict[str, Any]], scale: int) -> str:
    cells = [name]
    for field, shown in (("seconds", 1.0), ("allocated", scale)):
        if "error" in row:
            cells += [row["error"], "", ""] if field == "seconds" else ["", "", ""]
            continue
        cells.append(f"{row[field] / shown:.3g}")
        for other in ("plain", "taylor"):
            known = rows.get(other, {}).get(field)
            cells.append(f"{row[field] / known:.2f}" if known else "")
    cells.append(f"{row['reserved'] / scale:.3g}" if "reserved" in row else "")
    label, seconds, memory = TABLE_4.get(name, ("", None, None))
    _, most, largest = TABLE_4["taylor"]
    paper = (
        [f"{seconds}", f"{seconds / most:.2f}", f"{memory}", f"{memory / largest:.2f}"]
        if seconds and memory
        else 4 * [""]
    )
    return f"| {' | '.join([*cells, label, *paper])} |"


@app.command()
def large(
    device: Device = "cuda",
    size: Size = "65b",
    dtype: Dtype = "bfloat16",
    base: Annotated[str, typer.Option(help="int8 or nf4")] = "int8",
    batch: int = 2,
    length: int = 512,
    steps: int = 2,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations.")] = True,
    out: Json = None,
) -> None:
    """Table 1: LLaMA-65B on one card, pruned by `lora` on a quantised base, which is made layer by layer."""
    place = _checked(device, size, dtype)
    shared = {"size": size, "dtype": dtype, "batch": batch, "micro_batch": 1, "length": length, "device": device}
    shared |= {"steps": steps, "warmup": 1, "checkpointing": checkpointing}
    row = _child("tuning", {**shared, "scenario": f"lora-{base}"})
    typer.echo(f"LLaMA {size}, {base}, {batch} sequences of {length} tokens per iteration, one at a time\n")
    unit, scale = ("GiB", GIB) if place.type == "cuda" else ("MiB of RSS", 2**20)
    typer.echo("| run | cards | memory | weights | reserved | host | s/iter |\n" + "|---" * 7 + "|")
    if "error" in row:
        typer.echo(f"| `lora` on {base} | 1 | {row['error']} | | | | |")
    else:
        sizes = [
            f"{row[k] / scale:.3g} {unit}" if k in row else "" for k in ("allocated", "weights", "reserved", "host")
        ]
        typer.echo(f"| `lora` on {base} | 1 | {' | '.join(sizes)} | {row['seconds']:.3g} |")
    for name, (cards, memory) in TABLE_1.items():
        typer.echo(f"| {name}, paper | {cards} | {memory} G | | | | |")
    _finish({f"lora-{base}": row}, shared, place, out)


@app.command()
def latency(
    device: Device = "cuda",
    size: Size = "7b",
    dtype: Dtype = "float16",
    ratios: Annotated[str, typer.Option(help="Percentages of heads and channels that are gone.")] = "0,20,50",
    length: Annotated[int, typer.Option(help="Tokens of the prefill.")] = 2048,
    tokens: Annotated[int, typer.Option(help="Tokens that are decoded after it, one by one.")] = 32,
    trials: int = 100,
    warmup: int = 10,
    out: Json = None,
) -> None:
    """Table 3: a prefill and the decoding that follows, with adapters on and merged, by pruning ratio; medians."""
    place = _checked(device, size, dtype)
    shared = {"size": size, "dtype": dtype, "length": length, "tokens": tokens, "device": device}
    shared |= {"trials": trials, "warmup": warmup, "vocabulary": SIZES[size][-1]}
    rows = {int(r): _child("answering", {**shared, "ratio": int(r) / 100}) for r in ratios.split(",")}
    typer.echo(f"LLaMA {size}, {dtype}, one sequence, prefill of {length} tokens, {tokens} decoded; ratio to 0 %\n")
    typer.echo(
        "| ratio | prefill unmerged | prefill merged | token unmerged | token merged "
        "| paper unmerged | paper merged |\n" + "|---" * 7 + "|"
    )
    for ratio, row in rows.items():
        if "error" in row:
            typer.echo(f"| {ratio} % | {row['error']} | | | | | |")
            continue
        cells = [
            _beside(row[way][what], rows.get(0, {}).get(way, {}).get(what))
            for what in ("prefill", "decode")
            for way in ("unmerged", "merged")
        ]
        paper = [_beside(s, whole) for s, whole in zip(TABLE_3.get(ratio, ()), TABLE_3[0], strict=False)] or ["", ""]
        typer.echo(f"| {ratio} % | {' | '.join([*cells, *paper])} |")
    _finish({str(r): row for r, row in rows.items()}, shared, place, out)


def _beside(seconds: float, whole: float | None) -> str:
    return f"{seconds:.4f} s" + (f" ({seconds / whole:.2f})" if whole else "")


@app.command()
def correctness(
    device: Device = "cuda",
    size: Size = "small",
    only: Annotated[str, typer.Option(help="Checks whose names begin like this.")] = "",
    out: Json = None,
) -> None:
    """What tests on CPUs cannot show; exits with 1 if a check fails."""
    place = _checked(device, size, "float32")
    from gpu_checks import CHECKS, SkipError
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of other libraries, about themselves

    rows: dict[str, dict[str, Any]] = {}
    typer.echo(f"LLaMA {size} on {device}\n\n| check | | |\n|---|---|---|")
    for name, check in CHECKS.items():
        if not name.startswith(only):
            continue
        try:
            rows[name] = {"result": "ok", "detail": check(size, place)}
        except SkipError as error:
            rows[name] = {"result": "skipped", "detail": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            rows[name] = {"result": "FAILED", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        typer.echo(f"| {name} | {rows[name]['result']} | {rows[name].get('detail', rows[name].get('error'))} |")
    _finish(rows, {"size": size, "device": device}, place, out)


@app.command(hidden=True)
def child(work: str, options: str) -> None:
    """In a process of its own: one scenario."""
    from gpu_scenarios import WORK

    try:
        found = WORK[work](json.loads(options))
    except torch.OutOfMemoryError as error:
        found = {"error": "out of memory", "detail": str(error).splitlines()[0]}
    typer.echo(json.dumps(found))


def _child(work: str, options: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, **_ALLOCATOR}
    if options["device"] == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # a Trainer takes an accelerator where there is one
    command = [sys.executable, __file__, "child", work, json.dumps(options)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode}", "detail": "often: out of the host's memory"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"error": f"failed: {last[0]}", "detail": done.stderr, "failed": True}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _named(scenarios: str) -> list[str]:
    from gpu_scenarios import SCENARIOS

    names = scenarios.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise typer.BadParameter(f"expected some of {', '.join(SCENARIOS)}, got {', '.join(unknown)}")
    return names


def _checked(device: str, size: str, dtype: str) -> torch.device:
    if size not in SIZES:
        raise typer.BadParameter(f"--size: expected one of {', '.join(SIZES)}, got {size}")
    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype}")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        typer.echo("needs a CUDA device, got none. To try the script without one: --device cpu --size tiny", err=True)
        raise typer.Exit(2)
    return place


def _finish(rows: dict[str, Any], options: dict[str, Any], place: torch.device, out: Path | None) -> None:
    """Says where numbers are from, keeps them, and exits with 1 if something failed; running out of memory does not."""
    measured = machine(place)
    typer.echo("\n" + ", ".join(f"{key} {value}" for key, value in measured.items()))
    if place.type != "cuda":
        typer.echo("measured without a GPU: these numbers try the script, and say nothing of the paper's")
    if out is not None:
        out.write_text(json.dumps({"machine": measured, "options": options, "rows": rows}, indent=2) + "\n")
    if failed := [row for row in rows.values() if row.get("failed") or row.get("result") == "FAILED"]:
        typer.echo("\n".join(str(row.get("detail", row["error"])) for row in failed), err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
