"""The study file: what all cells share, what varies, how it is measured, and what is told of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from graphprune.evaluate.evaluation import Questions
from graphprune.fields import Section, as_tuple
from graphprune.schema import Data

#: What an axis of this name sets, where that is not the key of the spec of the same name.
SHORT: dict[str, str] = {
    "ratio": "targets.*.ratio",
    "mode": "training.mode",
    "average": "criterion.average",
    "steps": "training.steps",
    "rounds": "training.rounds",
    "every": "schedule.every",
}


def _as_seeds(value: Any) -> Any:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


def _labelled(value: Any) -> Any:
    """A list of models is a mapping: ``LABEL=NAME``, or named by the last part of each name."""
    value = as_tuple(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        return value
    pairs = [item.partition("=") for item in value]
    named = [
        (label, name) if equals else (label.rstrip("/").rsplit("/", 1)[-1], label) for label, equals, name in pairs
    ]
    twice = sorted({label for label, _ in named if [other for other, _ in named].count(label) > 1})
    if twice:
        raise ValueError(f"two models are called {', '.join(map(repr, twice))}: give them labels, as LABEL=NAME")
    return dict(named)


class Study(Section):
    """Runs over a grid: every combination of one value per axis, for every model and every seed.

    An axis is a key of the spec (``criterion``, ``scope``, ``schedule``), a short name of one (:data:`SHORT`), a path
    with dots (``lora.r``), or a name of one's own. Its values are a list, labelled by themselves, or a mapping from
    labels to values; under a name of one's own each value is a part of a spec, laid over ``spec``.
    """

    title: str = Field(min_length=1, description="What the report is called.")
    question: str = Field("", description="What the study is to settle, in a sentence or two.")
    source: str = Field("", description="The published experiment that it repeats: paper, table, address.")
    models: Annotated[
        dict[str, str],
        BeforeValidator(_labelled, json_schema_input_type=str | tuple[str, ...] | dict[str, str]),
    ] = Field({}, description="Folders or Hub ids, by label, or a list of them; may be given at run time.")
    base: str | None = Field(None, min_length=1, description="A recipe or spec file that 'spec' is laid over.")
    spec: dict[str, Any] = Field({}, description="What all cells share, as in a spec.")
    vary: dict[str, list[Any] | dict[str, Any]] = Field(min_length=1, description="The axes, by name.")
    skip: tuple[dict[str, Any], ...] = Field(
        (), description="Cells to leave out: labels by axis, one or a list of them; all named axes must match."
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_as_seeds, json_schema_input_type=int | tuple[int, ...])] = Field(
        (0, 1, 2), min_length=1, description="Seeds, or how many, counted from 0."
    )
    data: Data | None = Field(None, description="Text to train, calibrate and judge on, the same for every cell.")
    measure: Questions = Field(Questions(), description="What is measured of every result beside its perplexity.")
    series: str | None = Field(None, description="The axis whose values are compared; by default the first one.")
    across: str | None = Field(
        None, description="The axis along which they are followed; by default the ratio, else the second one."
    )

    @field_validator("vary")
    @classmethod
    def _no_empty_axis(cls, value: dict[str, list[Any] | dict[str, Any]]) -> dict[str, list[Any] | dict[str, Any]]:
        for name, values in value.items():
            if not values:
                raise ValueError(f"axis '{name}': expected at least one value, got none")
            if name in ("model", "seed"):
                raise ValueError(f"axis '{name}' is given by '{name}s', beside 'vary'")
        return value
