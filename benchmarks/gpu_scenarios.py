"""What benchmarks/gpu.py measures, one scenario per process: a tuning that scores, and a pruned model that answers."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from gpu_models import DTYPES, Meter, build, config_of, now, seconds_of, spec_of, traced
from transformers import TrainerCallback

import graphprune as gp
from graphprune.engine.adapters import attach, merge
from graphprune.engine.callback import PruneCallback
from graphprune.engine.data import load_blocks
from graphprune.engine.training import train
from graphprune.validate import resolve_targets

#: Criterion and base of every scenario; ``plain`` is LoRA tuning without pruning.
SCENARIOS: dict[str, tuple[Any, str]] = {
    "plain": (None, "none"),
    "lora": ("lora", "none"),
    "lora-int8": ("lora", "int8"),
    "lora-nf4": ("lora", "nf4"),
    "taylor": ("taylor", "none"),
    "taylor-batch": ({"name": "taylor", "mean_of": "batch"}, "none"),
    "magnitude": ("magnitude", "none"),
    "wanda": ("wanda", "none"),
}


def tuning(options: dict[str, Any]) -> dict[str, Any]:
    """A joint run in the engine's own training loop: seconds per optimizer step, and the peak of memory.

    Every step is scored. Units go at the last step alone, which is not timed: smaller models would make later steps
    cheaper, and the paper's numbers are of steps under masks.
    """
    criterion, kind = SCENARIOS[options["scenario"]]
    device, dtype = torch.device(options["device"]), DTYPES[options["dtype"]]
    torch.manual_seed(0)
    config = config_of(options["size"])
    graph = traced(config)
    model = build(config, graph, device, dtype, kind)
    steps = options["warmup"] + options["steps"] + 1
    spec = spec_of(
        criterion or "lora",
        schedule={"kind": "linear", "warmup": (steps - 1) / steps, "cooldown": 0},
        training={
            "mode": "joint",
            "steps": steps,
            "batch_size": options["batch"],
            "micro_batch_size": options["micro_batch"],
            "sequence_length": options["length"],
            "gradient_checkpointing": options["checkpointing"],
        },
    )
    ids = torch.randint(3, config.vocab_size, (options["batch"] * steps, options["length"]))
    groups = [g for target in resolve_targets(spec, graph) for g in target.groups]
    wrapped = attach(model, graph, groups, spec.lora)
    clock, meter = _Clock(device), Meter(device)
    pruning = [PruneCallback(spec, graph)] if criterion is not None else []
    data = load_blocks(ids, sequence_length=options["length"])
    train(wrapped, data, spec, callbacks=[*pruning, clock], progress=False)
    timed = clock.seconds[options["warmup"] : -1]
    found = {**meter.read(), "seconds": statistics.median(timed), "least": min(timed), "most": max(timed)}
    weights = sum(t.numel() * t.element_size() for t in model.parameters())
    return {**found, "weights": weights, "groups": len(groups) if pruning else 0}


class _Clock(TrainerCallback):
    """Seconds of every optimizer step, with all of its forward and backward passes and its scoring."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = now(self._device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(now(self._device) - self._start)


def answering(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a prefill and of one more token, of a model whose units are partly cut out; LoRA on, then merged."""
    device, dtype = torch.device(options["device"]), DTYPES[options["dtype"]]
    torch.manual_seed(0)
    config = config_of(options["size"], positions=options["length"] + options["tokens"] + 1)
    graph = traced(config)
    model = build(config, graph, device, dtype, "none")
    spec = spec_of("random", options["ratio"]) if options["ratio"] else spec_of("random")
    if options["ratio"]:
        plan = gp.plan(graph, spec, gp.score(model, graph, spec))
        model = gp.reshape(model, plan, graph)
    parameters = sum(p.numel() for p in model.parameters())
    groups = [g for target in resolve_targets(spec, graph) for g in target.groups]  # their tensors' names stay
    wrapped: Any = attach(model, graph, groups, spec.lora).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    wrapped.to(dtype)  # as loaded for inference; PEFT makes adapters in float32 for training
    found: dict[str, Any] = {"parameters": parameters, "unmerged": _times(wrapped, options, device)}
    merged = merge(wrapped).eval().requires_grad_(False)
    found["merged"] = _times(merged, options, device)
    return {**found, **Meter(device).read()}


@torch.inference_mode()
def _times(model: Any, options: dict[str, Any], device: torch.device) -> dict[str, float]:
    ids = torch.randint(3, options["vocabulary"], (1, options["length"]), device=device)
    kept: list[Any] = []

    def prefill() -> None:
        kept[:] = [model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values]

    def decode() -> None:
        token = ids[:, -1:]
        for _ in range(options["tokens"]):
            token = model(input_ids=token, past_key_values=kept[0], use_cache=True).logits[:, -1:].argmax(-1)

    found: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(options["warmup"] + options["trials"]):
        found["prefill"].append(seconds_of(prefill, device))
        found["decode"].append(seconds_of(decode, device) / options["tokens"])
    return {name: statistics.median(values[options["warmup"] :]) for name, values in found.items()}


WORK = {"tuning": tuning, "answering": answering}
