"""What the parts of a spec are made of: their base, lists that may be a single text, and choices of layers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from graphprune.errors import SelectionError
from graphprune.selection import layer_indices

#: Longer than any stack of layers: layer choices are checked for syntax against it, before a model is known.
_MANY_LAYERS = 10_000


def as_tuple(value: Any) -> Any:
    """A single text stands for a list of one."""
    return (value,) if isinstance(value, str) else value


def _is_layer_choice(value: Any) -> Any:
    """Lets an index, a slice text or a list of them pass; the stack they are counted on is known later."""
    value = tuple(value) if isinstance(value, list) else value
    items = value if isinstance(value, tuple) else (value,)
    if not items or any(isinstance(item, bool) or not isinstance(item, (int, str)) for item in items):
        raise ValueError(f"expected an index, a list of indices or a slice such as '3:-1', got {value!r}")
    try:
        layer_indices(value, _MANY_LAYERS)
    except SelectionError as error:
        raise ValueError(str(error)) from None
    return value


def _not_empty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(value):
        raise ValueError("expected at least one non-empty text")
    return value


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(as_tuple, json_schema_input_type=str | tuple[str, ...]),
    AfterValidator(_not_empty),
]
Layers = Annotated[
    int | str | tuple[int | str, ...],
    BeforeValidator(_is_layer_choice),
]


class Section(BaseModel):
    """Base of all parts of a spec: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
