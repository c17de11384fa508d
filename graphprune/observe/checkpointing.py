"""Activation checkpointing that runs backward passes of its own, piece by piece."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphprune.errors import CriterionError
from graphprune.names import bare


def refuse_reentrant(model: nn.Module) -> None:
    """Raises where ``model`` recomputes activations with ``use_reentrant=True``.

    Reentrant checkpointing calls backward once per segment, so that a weight used in several of them gives out its
    gradient in parts, each of which looks like the whole.

    Raises:
        CriterionError: naming the module, and what to set instead.
    """
    for name, module in bare(model).named_modules():
        function: Any = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(module, "gradient_checkpointing", False) and getattr(function, "keywords", {}).get("use_reentrant"):
            raise CriterionError(
                f"module '{name or type(module).__name__}' recomputes activations with use_reentrant=True, which gives "
                "out weight gradients in parts, so that no score could be taken of them. Expected use_reentrant=False: "
                'TrainingArguments(gradient_checkpointing_kwargs={"use_reentrant": False}).'
            )
