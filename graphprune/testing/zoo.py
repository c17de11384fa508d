"""The shipped data on tiny architectures: sizes by field name, overrides per architecture, variants."""

from __future__ import annotations

import functools
from difflib import get_close_matches
from importlib import resources
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from graphprune.errors import GraphPruneError

Fields = dict[str, Any]
T = TypeVar("T", bound=BaseModel)
SEPARATOR = "@"


class ZooError(GraphPruneError):
    """A tiny model is unknown, cannot be built here, or was asked for with fields that it does not have."""


class Sizes(BaseModel):
    """Tiny values by field name; see ``specs/architectures/sizes.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes: Fields
    even_if_off: frozenset[str]
    beside: dict[str, Fields]
    towers: Fields


class Architecture(BaseModel):
    """What one architecture needs beyond the sizes by field name; see ``specs/architectures/zoo.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Fields = Field(default_factory=dict)
    config_class: str | None = None
    model_class: str | None = None
    seed: int = 0
    offset: float | None = None
    tables: dict[str, str] = Field(default_factory=dict)
    variants: dict[str, Fields] = Field(default_factory=dict)


class Zoo(BaseModel):
    """Every architecture with something of its own; see ``specs/architectures/zoo.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unavailable: dict[str, str]
    architectures: dict[str, Architecture]


class Case(NamedTuple):
    """One tiny model: an architecture, its own data, the fields of the variant."""

    architecture: str
    entry: Architecture
    variant: Fields


@functools.cache
def read_sizes() -> Sizes:
    """The shipped sizes."""
    return _read("sizes.yaml", Sizes)


@functools.cache
def read_zoo() -> Zoo:
    """The shipped architectures."""
    return _read("zoo.yaml", Zoo)


def architectures() -> tuple[str, ...]:
    """The model types of every causal language model that transformers registers and that builds here, sorted."""
    return tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(unavailable())))


def unavailable() -> dict[str, str]:
    """The registered or listed model types that do not build here, with the reason."""
    zoo = read_zoo()
    reasons = {name: why for name, why in zoo.unavailable.items() if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    unregistered = set(zoo.architectures) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    reasons |= dict.fromkeys(unregistered, "the installed version of transformers does not register it")
    return dict(sorted(reasons.items()))


def cases(architecture: str | None = None) -> tuple[str, ...]:
    """The names of the tiny models, ``architecture`` or ``architecture@variant``, of one architecture or of all.

    Raises:
        ZooError: for an architecture that is unknown or does not build here.
    """
    if architecture is None:
        return tuple(case for name in architectures() for case in cases(name))
    _check(architecture)
    variants = read_zoo().architectures.get(architecture, Architecture()).variants
    return (architecture, *(f"{architecture}{SEPARATOR}{variant}" for variant in variants))


def find(case: str) -> Case:
    """The data of a case.

    Raises:
        ZooError: for an unknown architecture or variant, with the nearest known ones.
    """
    architecture, _, variant = case.partition(SEPARATOR)
    _check(architecture)
    entry = read_zoo().architectures.get(architecture, Architecture())
    if case == architecture:
        return Case(architecture, entry, {})
    if variant not in entry.variants:
        known = ", ".join(cases(architecture))
        raise ZooError(f"unknown case '{case}'.{did_you_mean(case, cases(architecture))} Known here: {known}.")
    return Case(architecture, entry, entry.variants[variant])


def did_you_mean(name: str, known: tuple[str, ...] | list[str]) -> str:
    """A hint for messages, with a leading space; empty where nothing is near."""
    near = get_close_matches(name, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def _check(architecture: str) -> None:
    if architecture in unavailable():
        raise ZooError(f"'{architecture}' does not build here: {unavailable()[architecture]}.")
    if architecture not in architectures():
        hint = did_you_mean(architecture, architectures())
        raise ZooError(
            f"unknown architecture '{architecture}'.{hint} "
            "graphprune.testing.architectures() lists the model types that build here."
        )


def _read(name: str, model: type[T]) -> T:
    text = (resources.files("graphprune.specs") / "architectures" / name).read_text(encoding="utf-8")
    try:
        return model.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise ZooError(f"specs/architectures/{name}: {error}") from None
