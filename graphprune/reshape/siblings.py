"""Other classes of transformers that compute what a class does, read from ``specs/siblings.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import transformers
import yaml
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

#: What a config says of its own class or of its file, and a sibling's says for itself.
_OWN = {"model_type", "architectures", "auto_map", "transformers_version"}


class Sibling(BaseModel):
    """One entry of the file.

    Attributes:
        known_as: the class of the model.
        sibling: the class that may stand in for it.
        when: fields of the model's config and the values that they must have.
        values: fields of the sibling's config, with their values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    known_as: str = Field(alias="class")
    sibling: str
    when: dict[str, Any] = {}
    values: dict[str, Any] = Field({}, alias="set")


@cache
def known_siblings() -> tuple[Sibling, ...]:
    """Every entry of the file, in order."""
    text = (resources.files("graphprune.specs") / "siblings.yaml").read_text(encoding="utf-8")
    return tuple(Sibling.model_validate(item) for item in yaml.safe_load(text))


def siblings_of(architecture: str, config: dict[str, Any]) -> Iterator[tuple[type[PreTrainedModel], dict[str, Any]]]:
    """The classes that may stand in for ``architecture``, each with its config of the same model.

    Args:
        architecture: the name of the model's class.
        config: its config as plain values.
    """
    for entry in known_siblings():
        kind = getattr(transformers, entry.sibling, None)
        fits = all(name in config and config[name] == value for name, value in entry.when.items())
        if entry.known_as == architecture and fits and kind is not None:
            known = {field.name for field in dataclasses.fields(kind.config_class)}
            shared = {name: value for name, value in config.items() if name in known - _OWN}
            own = {"model_type": kind.config_class.model_type, "architectures": [entry.sibling]}
            yield kind, {**shared, **entry.values, **own}
