"""Models of random weights for benchmarks/gpu.py, made where they are needed, and what they take of a device."""

from __future__ import annotations

import importlib.util
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from graphprune.engine.quantise import check_available, quantisable, quantised
from graphprune.graph import DependencyGraph
from graphprune.schema import PruneSpec, Quantization
from graphprune.specfile import load_spec
from graphprune.trace import trace

#: hidden size, MLP channels, layers, heads, key/value heads, vocabulary.
SIZES = {
    "tiny": (64, 128, 2, 4, 2, 256),
    "small": (512, 1376, 4, 8, 4, 1024),
    "1b": (2048, 5504, 22, 32, 32, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "30b": (6656, 17920, 60, 52, 52, 32000),
    "65b": (8192, 22016, 80, 64, 64, 32000),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIB = 2**30
_SPREAD = 0.02


def config_of(size: str, positions: int = 2048) -> LlamaConfig:
    """The config of a LLaMA of that size."""
    hidden, channels, layers, heads, groups, vocabulary = SIZES[size]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
    )


def spec_of(criterion: Any = "lora", ratio: float = 0.5, **sections: Any) -> PruneSpec:
    """The share ``ratio`` of all heads and MLP channels, so that adapters are on all seven projections of a layer."""
    targets = [{"role": role, "ratio": ratio} for role in ("attention.group", "mlp.channel")]
    given = {"targets": targets, "criterion": criterion, "lora": {"dropout": 0.0}, "training": {"mode": "none"}}
    return load_spec({**given, **sections})


def traced(config: LlamaConfig) -> DependencyGraph:
    """The graph, found without weights."""
    with torch.device("meta"):
        return trace(LlamaForCausalLM(config))


def build(config: LlamaConfig, graph: DependencyGraph, device: torch.device, dtype: torch.dtype, kind: str) -> Any:
    """A model of random weights on ``device``; ``kind``: none, int8, nf4 or fp4.

    Layer by layer, so that beside what is done there is never more than one matrix in full precision.
    """
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config).to(dtype)
    model.config.use_cache = False
    if kind != "none":
        settings = Quantization.model_validate({"kind": kind})
        check_available(settings, device)
        for path in quantisable(model, graph, settings, device):
            alone = nn.Sequential(_linear(model.get_submodule(path), device, dtype))
            model.set_submodule(path, quantised(alone, ("0",), settings, device, consume=True)[0])
        # By these PEFT and the Trainer know such a model (graphprune.engine.quantise).
        model.is_loaded_in_8bit, model.is_loaded_in_4bit = kind == "int8", kind != "int8"
        model.quantization_method = "bitsandbytes"
    for module in model.modules():
        for leaf, tensor in module._parameters.items():
            if tensor is not None and tensor.is_meta:
                value = torch.empty(tensor.shape, dtype=dtype, device=device)
                value = value.normal_(std=_SPREAD) if tensor.ndim > 1 else value.fill_(1.0)
                module._parameters[leaf] = nn.Parameter(value, requires_grad=kind == "none")
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model


def _linear(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    rows, columns = layer.get_parameter("weight").shape
    made = nn.Linear(columns, rows, bias=False, device=device, dtype=dtype)
    nn.init.normal_(made.weight, std=_SPREAD)
    return made


class Meter:
    """Peak memory since it was made: of the device's allocator on CUDA, resident memory of the process elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.start = self._now()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> dict[str, float]:
        """``allocated`` and ``reserved`` bytes at the peak (``allocated`` is resident memory without CUDA), ``host``
        the most that the process held in the host's memory, in all its life."""
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self._cuda:
            most, kept = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            return {"allocated": most, "reserved": kept, "loaded": self.start, "host": host}
        return {"allocated": _status("VmHWM"), "loaded": self.start, "host": host}

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self._cuda else _status("VmRSS")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "memory is measured on Linux"
    return int(found[1]) * 1024


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Any, device: torch.device) -> float:
    """How long ``work()`` takes: by events on the device's own stream on CUDA, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize(device)
    return float(began.elapsed_time(ended)) / 1000


def machine(device: torch.device) -> dict[str, str]:
    """What numbers were measured on."""
    import importlib.metadata as installed

    found = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)}
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        present = importlib.util.find_spec(name) is not None
        found[name] = installed.version(name) if present else "not installed"
    return {**found, "cuda": str(torch.version.cuda), "date": time.strftime("%Y-%m-%d")}
