"""Importance criteria, one per file, imported as `graphprune.importance`."""

if __name__ != "graphprune.importance":
    # The folder stands at the top of the repository, so a shell opened there could import it under its bare
    # name. Every criterion would then exist twice, once per name, and isinstance checks would fail for no
    # visible reason.
    raise ImportError(
        f"expected this package as 'graphprune.importance', got 'import {__name__}', found at {__file__}. "
        "It is a part of graphprune: write 'from graphprune import importance' "
        "(in a checkout, run 'pip install -e .' once before).",
        name=__name__,
        path=__file__,
    )

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from graphprune.errors import CriterionError
from graphprune.importance.base import Criterion, LoraFactors, MemberCriterion, Observation, Options, Signal
from graphprune.importance.gate import Gate
from graphprune.importance.lora import Lora
from graphprune.importance.magnitude import Magnitude
from graphprune.importance.random import Random
from graphprune.importance.taylor import Taylor
from graphprune.importance.torch_pruning import TorchPruning
from graphprune.importance.wanda import Wanda
from graphprune.registry import Registry

#: Every criterion by its name in specs; other packages add theirs through the entry point
#: ``graphprune.criteria``.
criteria: Registry[type[Criterion]] = Registry("criterion", "graphprune.criteria")

_BUILT_IN: tuple[type[Criterion], ...] = (Lora, Taylor, Magnitude, Wanda, Gate, Random, TorchPruning)
for _criterion in _BUILT_IN:
    criteria.register(_criterion.name, _criterion)

__all__ = [
    "Criterion",
    "Gate",
    "Lora",
    "LoraFactors",
    "Magnitude",
    "MemberCriterion",
    "Observation",
    "Options",
    "Random",
    "Signal",
    "Taylor",
    "TorchPruning",
    "Wanda",
    "build",
    "criteria",
]


def build(criterion: str | Mapping[str, Any]) -> Criterion:
    """A criterion as specs write it: its name, or ``{"name": ..., <options>}``.

    ``average`` beside the options belongs to the engine and is left aside.

    Raises:
        CriterionError: for an unknown name, with the nearest known ones; for wrong options, naming every one.
    """
    given = {"name": criterion} if isinstance(criterion, str) else dict(criterion)
    given.pop("average", None)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise CriterionError(f"expected a criterion as a name or as {{name: ..., options}}, got {criterion!r}")
    found = criteria.get(name)
    try:
        return found(found.options_model.model_validate(given))
    except ValidationError as error:
        problems = [
            f"  - {'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
        allowed = ", ".join(found.options_model.model_fields) or "no options"
        raise CriterionError(
            "\n".join([f"criterion '{name}' takes {allowed}; the given options are wrong:", *problems])
        ) from None
