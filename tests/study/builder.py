"""Results of a study that never ran: records with numbers that behave like real ones."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from graphprune.evaluate.evaluation import Evaluation
from graphprune.evaluate.latency import Latency, Timing
from graphprune.evaluate.tasks import TaskScore
from graphprune.report.measures import Measures
from graphprune.report.report import Report
from graphprune.report.stages import Stage
from graphprune.study.records import CellRecord, DenseRecord, EventRecord, GroupRecord
from graphprune.study.results import Results
from graphprune.study.schema import Study

NAMES = "taylor lora magnitude wanda gate random lora-reference torch-pruning fisher hessian".split()
DENSE = 3.84
SIZES = {"attention.group": 8, "mlp.channel": 64}


def names(count: int) -> list[str]:
    """So many labels, short ones and long ones."""
    more = [f"{name}, {average} λ=0.{k}" for k, average in ((9, "ema"), (99, "mean")) for name in NAMES]
    return [*NAMES, *more][:count]


def build(
    folder: Path,
    *,
    series: int = 3,
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5),
    seeds: int = 3,
    models: tuple[str, ...] = ("stories",),
    modes: tuple[str, ...] = ("joint",),
    layers: int = 6,
    segments: int = 40,
    broken: tuple[int, ...] = (),
    measured: bool = True,
    across: str | None = None,
) -> Results:
    """Writes score files into ``folder`` and gives the results; ``broken`` are indices of cells that fail."""
    settings = names(series)
    vary = {"criterion": settings, "ratio": list(ratios)} | ({"mode": list(modes)} if len(modes) > 1 else {})
    study = Study(
        title="Criteria at equal steps",
        question="Which criterion keeps the most quality at which ratio, when everything else is the same?",
        source="LoRAPrune, Table 2, https://arxiv.org/abs/2305.18403",
        models={name: f"/models/{name}" for name in models},
        vary=vary,
        seeds=seeds,
        across=across,
    )
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    cells = []
    grid = itertools.product(models, modes, ratios, enumerate(settings), range(seeds))
    for index, (model, mode, ratio, (number, setting), seed) in enumerate(grid):
        labels = {"model": model, "criterion": setting, "ratio": str(ratio)}
        labels |= {"mode": mode} if len(modes) > 1 else {}
        values = {"ratio": ratio}
        key = hashlib.sha256(repr((labels, seed)).encode()).hexdigest()[:16]
        spec = {"targets": [{"role": list(SIZES), "ratio": ratio}], "criterion": {"name": setting}, "seed": seed}
        spec["training"] = {"mode": mode, "steps": 60}
        common = {"key": key, "labels": labels, "values": values, "seed": seed, "spec": spec}
        common["command"] = f"graphprune prune {model} cells/{key}.yaml --out cells/{key}"
        if index in broken:
            error = "NonFiniteError: the loss of batch 3 is nan, expected a number. Check the batch."
            cells.append(CellRecord(**common, status="failed", error=error, seconds=3.5))
            continue
        cells.append(_cell(folder, common, number, ratio, seed, layers, segments, mode, measured))
    dense = [DenseRecord(key=f"dense-{m}", model=m, evaluation=_evaluation(m, 0.0, 0.0, 7)) for m in models]
    return Results(study=study, cells=tuple(cells), dense=tuple(dense) if measured else (), folder=folder)


def _cell(folder, common, number, ratio, seed, layers, segments, mode, measured) -> CellRecord:
    setting = common["labels"]["criterion"]
    tag = int(hashlib.sha256(f"{setting}{ratio}{seed}".encode()).hexdigest()[:8], 16)
    noise = np.random.default_rng(tag)
    quality = 0.4 + 0.12 * number + (1.5 if setting.startswith("random") else 0)
    base = math.log(DENSE) - 0.3 + quality * ratio + 3 * ratio**3 + 0.02 * seed
    tuned = np.full(segments, base + 0.03 * ratio * noise.standard_normal())
    tuned += np.random.default_rng(1).standard_normal(segments) * 0.3 + noise.standard_normal(segments) * 0.02
    pruned = tuned + 0.5 + 3 * ratio
    scores = _scores(setting, seed, layers)
    file = f"scores/{hashlib.sha256(f'{setting}{seed}'.encode()).hexdigest()[:16]}.safetensors"
    if not (folder / file).exists():
        save_file(scores, folder / file)
    groups = {}
    for name, score in scores.items():
        layer, role = int(name.split(".")[2]), name.split("/")[1]
        share = min(0.9, ratio * (0.6 + 0.8 * layer / max(1, layers - 1)))
        gone = torch.argsort(score)[: int(len(score) * share)].sort().values.tolist()
        groups[name] = GroupRecord(role=role, layer=layer, size=len(score), removed=tuple(gone))
    trained = mode != "none"
    events = tuple(
        EventRecord(step=step, fraction=1 - (1 - k / 10) ** 3, removed={}, loss=None)
        for k, step in enumerate(range(6, 56, 5), start=1)
    )
    log = tuple(
        {
            "loss": base - 0.2 + 0.9 * math.exp(-s / 15) + 0.05 * noise.standard_normal() + ratio * s / 80,
            "learning_rate": 1e-3 * (1 - s / 61),
            "grad_norm": 1.0,
            "epoch": s / 60,
            "step": s,
        }
        for s in range(2, 61, 2)
    )
    seconds = 20 + 3 * number + noise.random()
    stages = [Stage(name="load", seconds=0.4, peak_rss_bytes=400 << 20)]
    if setting != "magnitude":
        stages.append(Stage(name="score", seconds=2 + number, peak_rss_bytes=(500 + 30 * number) << 20))
    if trained:
        stages.append(Stage(name="train", seconds=seconds, peak_rss_bytes=(600 + 20 * number) << 20))
    report = Report(
        model=common["labels"]["model"],
        before=_measures(0.0),
        after=_measures(ratio),
        perplexity_before=DENSE,
        perplexity_pruned=float(np.exp(pruned.mean())),
        perplexity_tuned=float(np.exp(tuned.mean())) if trained else None,
        evaluation="held_out.txt in segments of 128 tokens",
        stages=tuple(stages),
        spec=common["spec"],
        versions={"python": "3.11.7", "torch": "2.13.0", "graphprune": "0.1.0"},
        seed=seed,
    )
    return CellRecord(
        **common,
        report=report,
        evaluation=_evaluation(setting, ratio, quality, tag) if measured else None,
        segments={"pruned": tuple(pruned)} | ({"tuned": tuple(tuned)} if trained else {}),
        groups=groups,
        events=events if mode == "joint" else (),
        log=log if trained else (),
        scores=file,
        seconds=seconds + 5,
    )


def _scores(setting: str, seed: int, layers: int) -> dict[str, torch.Tensor]:
    """Settings share a part of their taste; the layers differ."""
    mine = torch.Generator().manual_seed(int(hashlib.sha256(f"{setting}{seed}".encode()).hexdigest()[:8], 16))
    shared = torch.Generator().manual_seed(0)
    found = {}
    for layer, (role, size) in itertools.product(range(layers), SIZES.items()):
        common = torch.rand(size, generator=shared)
        part = "self_attn" if role.startswith("attention") else "mlp"
        own = torch.rand(size, generator=mine)
        found[f"model.layers.{layer}.{part}/{role}"] = (common + 0.7 * own) * (1 + layer) ** 0.5
    return found


def _measures(ratio: float) -> Measures:
    kept = 1 - 0.8 * ratio
    return Measures(
        parameters=int(2_600_000 * kept),
        weight_bytes=int(10_400_000 * kept),
        sequence_length=512,
        macs=int(1.4e9 * kept),
        cache_bytes=int(2_000_000 * kept),
    )


def _evaluation(name: str, ratio: float, quality: float, tag: int) -> Evaluation:
    noise = np.random.default_rng(tag)
    right = 0.55 - 0.3 * ratio - 0.02 * quality + 0.01 * noise.standard_normal()
    task = TaskScore(metrics={"acc": right - 0.02, "acc_norm": right}, errors={"acc": 0.01}, samples=500, few_shot=None)
    other = TaskScore(metrics={"acc": right - 0.1}, errors={}, samples=500, few_shot=None)
    seconds = 0.08 * (1 - 0.6 * ratio) * (1 + 0.02 * noise.random())
    return Evaluation(
        name=name,
        dtype="float32",
        device="cpu",
        size=_measures(ratio),
        length=128,
        perplexity={"/texts/wiki_valid.txt": 9.1 * math.exp((0.5 + quality) * ratio + 0.01 * noise.standard_normal())},
        tasks={"arc_easy=/data/arc_easy.jsonl": task, "openbookqa": other},
        latency=Latency(
            prompt_tokens=2048, new_tokens=32, batch_size=1, trials=5, device="cpu",
            prefill=Timing(median=seconds, smallest=seconds * 0.97, largest=seconds * 1.05),
            decode=Timing(median=seconds / 20, smallest=seconds / 21, largest=seconds / 19),
        ),
        stages=(Stage(name="latency", seconds=1.0, peak_rss_bytes=500 << 20),),
    )  # fmt: skip
