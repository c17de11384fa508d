"""Perplexity by criterion, ratio and mode at equal steps: the tables of docs/results.md.

    python benchmarks/criteria.py run MODEL TEXT --out cells.jsonl [--steps 60 --seeds 3 ...]
    python benchmarks/criteria.py table cells.jsonl

Every cell is one call of ``gp.prune``; it is appended to the file when it is done, and skipped when it is there
already, so a run that was broken off goes on where it stopped. Sequences begin where a line of TEXT begins; the last
tenth of them is held out for the perplexity (or another text is given), the rest is shuffled by the seed, which also
seeds the adapters and the random criterion. ``separate`` gives two numbers, pruned in one shot and tuned after;
``joint`` prunes while tuning.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

import graphprune as gp

CRITERIA: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "magnitude": {"name": "magnitude"},
    "wanda": {"name": "wanda"},
    "gate": {"name": "gate"},
    "taylor": {"name": "taylor"},
    "torch-pruning": {"name": "torch_pruning", "importance": "GroupTaylorImportance"},
    "lora": {"name": "lora", "variant": "paper"},
    "lora-reference": {"name": "lora", "variant": "reference"},
}
JUDGED = 150
"""Rows of held-out text that a perplexity is taken over, at most (evenly spread)."""
CHARACTERS = 8
"""More characters than a token has on average, so that a piece of text surely fills a row."""
COLUMNS = ("untuned", "separate", "joint")
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def run(
    model: Path,
    text: Path,
    out: Annotated[Path, typer.Option()],
    criteria: str = ",".join(CRITERIA),
    ratios: str = "0.2,0.5",
    modes: str = "separate,joint",
    seeds: int = 3,
    steps: int = 60,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    length: int = 128,
    held_out: float = 0.1,
    scope: str = "layer",
    rank: int = 8,
    evaluation: Annotated[Path | None, typer.Option(help="Text for the perplexity, instead of a part of TEXT.")] = None,
    separator: str = "\n",
) -> None:
    """Runs every cell that OUT does not have yet."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    training = _rows(text.read_text(encoding="utf-8"), tokenizer, separator, length)
    if evaluation is None:
        cut = int(len(training) * (1 - held_out))
        training, judged = training[:cut], training[cut:]
    else:
        judged = _rows(evaluation.read_text(encoding="utf-8"), tokenizer, separator, length)
    judged = judged[:: max(1, len(judged) // JUDGED)]
    done = {json.dumps(_key(cell)) for cell in _cells(out)}
    for seed in range(seeds):
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed)).tolist()
        data = [training[i] for i in order]
        for ratio in map(float, ratios.split(",")):
            for mode in modes.split(","):
                for name in criteria.split(","):
                    cell: dict[str, Any] = {"model": model.name, "criterion": name, "ratio": ratio, "mode": mode}
                    cell |= {"seed": seed, "steps": steps, "scope": scope, "rank": rank}
                    if json.dumps(_key(cell)) in done:
                        continue
                    options = CRITERIA[name] | ({"seed": seed} if name == "random" else {})
                    spec = {
                        "targets": [{"role": ["attention.group", "mlp.channel"], "ratio": ratio}],
                        "scope": scope,
                        "criterion": options,
                        "schedule": {"every": max(1, steps // 20)},
                        "lora": {"r": rank, "alpha": 2 * rank, "dropout": 0.0},
                        "training": {
                            "mode": mode,
                            "steps": steps,
                            "learning_rate": learning_rate,
                            "batch_size": batch_size,
                            "sequence_length": length,
                            "calibration_batches": 10,
                        },
                        "seed": seed,
                    }
                    start = time.perf_counter()
                    fresh = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
                    report = gp.prune(fresh, spec, train_data=data, evaluation=judged, progress=False).report
                    cell |= {
                        "dense": report.perplexity_before,
                        "pruned": report.perplexity_pruned,
                        "tuned": report.perplexity_tuned,
                        "removed": report.plan,
                        "seconds": round(time.perf_counter() - start, 1),
                    }
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(cell) + "\n")
                    print(json.dumps(cell), flush=True)


@app.command()
def table(cells: Path) -> None:
    """Prints a Markdown table per model and ratio: mean over seeds with the smallest and largest value."""
    for model in dict.fromkeys(c["model"] for c in _cells(cells)):
        for ratio in dict.fromkeys(c["ratio"] for c in _cells(cells)):
            chosen = [c for c in _cells(cells) if c["model"] == model and c["ratio"] == ratio]
            if chosen:
                print(f"\n{model}, {ratio:.0%}, dense {chosen[0]['dense']:.2f}, {chosen[0]['steps']} steps\n")
                print(_markdown(chosen))


def _markdown(cells: list[dict[str, Any]]) -> str:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in cells:
        if cell["mode"] == "separate":
            values[cell["criterion"], "untuned"].append(cell["pruned"])
        values[cell["criterion"], cell["mode"]].append(cell["tuned"])
    lines = [f"| criterion | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in CRITERIA:
        row = [_spread(values[name, column]) for column in COLUMNS]
        if any(row):
            lines.append(f"| `{name}` | {' | '.join(row)} |")
    return "\n".join(lines)


def _spread(numbers: list[float]) -> str:
    if not numbers:
        return ""
    return f"{statistics.mean(numbers):.2f} ({min(numbers):.2f}–{max(numbers):.2f})"


def _rows(text: str, tokenizer: Any, separator: str, length: int) -> list[list[int]]:
    """Rows of ``length`` tokens that begin where a piece of the text begins and run on through the next ones."""
    rows = []
    start = 0
    for piece in text.split(separator):
        if piece.strip():
            ids = tokenizer(text[start : start + CHARACTERS * length]).input_ids[:length]
            rows.extend([ids] if len(ids) == length else [])
        start += len(piece) + len(separator)
    return rows


def _key(cell: dict[str, Any]) -> list[Any]:
    return [cell[k] for k in ("model", "criterion", "ratio", "mode", "seed", "steps", "scope", "rank")]


def _cells(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


if __name__ == "__main__":
    app()
