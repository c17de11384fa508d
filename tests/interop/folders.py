"""Pruned folders of every tier, and how each is loaded: what other programs are tried on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import graphprune as gp
from graphprune import demo
from graphprune.checkpoint.manifest import Manifest

#: How a folder of each tier is loaded. What a tier needs is in its row alone.
LOADERS: dict[str, Callable[..., Any]] = {
    "hf": AutoModelForCausalLM.from_pretrained,
    "hf-remote-code": partial(AutoModelForCausalLM.from_pretrained, trust_remote_code=True),
    "graphprune": gp.load,
}


def write(folder: Path, tier: str) -> Path:
    """The demo decoder without half of its channels and one head group, in all layers alike or from the second on.

    Widths stay multiples of 64, which the kernels of quantised layers ask for.
    """
    model = AutoModelForCausalLM.from_pretrained(demo.model_path())
    graph = gp.trace(model)
    layers = ":" if tier == "hf" else "1:"
    units = {g.name: range(0, g.size, 2) for g in graph.select(role="mlp.channel", layers=layers)}
    gp.reshape(model, gp.PrunePlan.remove(graph, units), graph)
    gp.save(model, folder, tokenizer=AutoTokenizer.from_pretrained(demo.model_path()), targets=[tier])
    assert Manifest.read(folder).tier == tier
    return folder


def load(folder: Path, **options: Any) -> Any:
    """The model, as its tier is loaded."""
    return LOADERS[Manifest.read(folder).tier](folder, **options).eval()


def ids(folder: Path) -> torch.Tensor:
    """A few tokens of (1, length)."""
    text = demo.held_out_path().read_text(encoding="utf-8")[:200]
    found: torch.Tensor = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    return found


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits in float32."""
    found: torch.Tensor = model(input_ids=tokens).logits.float()
    return found


@torch.no_grad()
def loss(model: Any, tokens: torch.Tensor) -> float:
    """Mean negative log-likelihood of the tokens."""
    return float(model(input_ids=tokens, labels=tokens).loss)
