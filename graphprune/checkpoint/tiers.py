"""The tiers of checkpoints, and which of them a model can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from graphprune.checkpoint.adapters import ADAPTER
from graphprune.checkpoint.remote import KEY, Recipe, find_recipe
from graphprune.errors import CheckpointError
from graphprune.names import bare
from graphprune.reshape.history import History, history_of
from graphprune.tasks import loader_name

TierName = Literal["hf", "hf-remote-code", "graphprune"]
TIERS: tuple[TierName, ...] = get_args(TierName)
"""From the one that asks least of whoever loads it to the one that asks most."""


@dataclass(frozen=True)
class Tier:
    """What a model can be saved as.

    Attributes:
        name: the first acceptable tier that is possible.
        recipe: for tier ``hf-remote-code``.
        why_not: of the tiers that asked less of whoever loads the folder, the reasons why they are not possible.
    """

    name: TierName
    recipe: Recipe | None = None
    why_not: dict[str, str] = field(default_factory=dict)


def best_tier(model: nn.Module, targets: Sequence[str] = TIERS) -> Tier:
    """The first of ``targets`` that ``model`` can have. Proved without weights; takes seconds for large models.

    Raises:
        CheckpointError: if it can have none of them; the message has the reasons.
    """
    unknown = [target for target in targets if target not in TIERS]
    if unknown or not targets:
        raise CheckpointError(f"targets: expected some of {', '.join(TIERS)}, got {', '.join(unknown) or 'none'}")
    history = history_of(model)
    why_not: dict[str, str] = {}
    for target in dict.fromkeys(targets):
        if target == "graphprune":
            return Tier("graphprune", None, why_not)
        found: Recipe | str | None = find_recipe(history) if target == "hf-remote-code" else _not_stock(history)
        if isinstance(found, Recipe):
            return Tier("hf-remote-code", found, why_not)
        if not found:
            return Tier("hf", None, why_not)
        why_not[target] = found
    reasons = "; ".join(f"{target}: {reason}" for target, reason in why_not.items())
    raise CheckpointError(
        f"this {type(bare(model)).__name__} can be saved as none of {', '.join(targets)} ({reasons}). "
        "Add 'graphprune' to the targets, which can hold every model that graphprune.reshape cut."
    )


def _not_stock(history: History) -> str:
    if KEY in history.base_config:
        return "it came from a folder with a modelling file of its own, which it still needs"
    return "" if history.stock else history.why_not


def load_line(model: nn.Module, folder: Path, tier: Tier, *, adapter: bool = False) -> str:
    """The line of Python that loads ``model`` from a folder of the given tier, with adapters beside its weights."""
    base: Any = bare(model)
    place = repr(str(folder))
    if tier.recipe is not None:
        loaded = f"transformers.{tier.recipe.loader}.from_pretrained({place}, trust_remote_code=True)"
    elif tier.name == "hf":
        loaded = f"transformers.{loader_name(type(base).__name__, base.config.model_type)}.from_pretrained({place})"
    else:
        loaded = f"graphprune.load({place})"
    return (
        f"model = peft.PeftModel.from_pretrained({loaded}, {str(folder / ADAPTER)!r})"
        if adapter
        else f"model = {loaded}"
    )
