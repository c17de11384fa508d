"""Groups declared by hand in a spec, as values: what a person says about a part that the tracer cannot see through.

What they mean for a model, and whether they are true of it, is :func:`graphprune.declare`'s to find out.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from graphprune.fields import Layers, Section, as_tuple
from graphprune.yaml_lines import read_yaml

#: ``groups: "architecture:<name>"`` stands for the groups of a file in ``specs/architectures``.
SHIPPED = "architecture:"

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FORMULA = re.compile(r"(?:(\d+) ?\* ?)?size(?: ?\* ?(\d+))?(?: ?([+-]) ?(\d+)| ?\+ ?(rest))?")
_KNOWN = ("layer", "unit")


def _is_pattern(value: str) -> str:
    unknown = [name for name in _PLACEHOLDER.findall(value) if name not in _KNOWN]
    if unknown:
        raise ValueError(f"unknown placeholder {{{unknown[0]}}} in {value!r}; known are {{layer}} and {{unit}}")
    if "{" in _PLACEHOLDER.sub("", value) or "}" in _PLACEHOLDER.sub("", value):
        raise ValueError(f"a brace without its partner in {value!r}; placeholders are {{layer}} and {{unit}}")
    return value


def _without_unit(value: str) -> str:
    if "{unit}" in value:
        raise ValueError(f"{{unit}} has no meaning here, got {value!r}; units are slices, or the entries of a list")
    return value


def _is_formula(value: str) -> str:
    if _FORMULA.fullmatch(value.strip()) is None:
        raise ValueError(f"expected 'size', '8*size', '8*size + 4' or 'size + rest', got {value!r}")
    return value.strip()


def _is_length(value: Any) -> Any:
    if value is None or (type(value) is int and value >= 1):
        return value
    if not isinstance(value, str) or _is_formula(value).endswith("rest"):
        raise ValueError(f"expected a number of indices, 'size', '8*size' or '8*size + 4', got {value!r}")
    return value.strip()


def _is_size(value: Any) -> Any:
    if isinstance(value, str) and value:
        return _without_unit(_is_pattern(value))
    if value is not None and (type(value) is not int or value < 2):
        raise ValueError(f"expected two units or more, or the path of an integer that says how many, got {value!r}")
    return value


def _is_completion(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value:
        return _without_unit(_is_pattern(value))
    raise ValueError(f"expected true, false, or the name of a traced group, got {value!r}")


UnitPattern = Annotated[str, Field(min_length=1), AfterValidator(_is_pattern)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_is_pattern), AfterValidator(_without_unit)]
Formula = Annotated[str, AfterValidator(_is_formula)]


class Strides(Section):
    """Where the units lie in one dimension, as nested strides.

    Unit ``u`` occupies ``start + u·unit_stride + Σ_k i_k·stride_k`` for every ``i_k`` in ``range(count_k)``.
    """

    start: int = Field(0, ge=0, description="Index of the first element of unit 0.")
    unit_stride: int = Field(ge=1, description="From a unit to the next one.")
    loops: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = Field(
        (), description="Pairs of a count and a stride: what else belongs to the unit."
    )


Start = Annotated[int | None, Field(ge=0, description="Where the units begin; at index 0 by default.")]
Length = Annotated[
    int | str | None,
    BeforeValidator(_is_length),
    Field(description="How many indices are divided evenly among the units, such as 64 or '8*size'; all by default."),
]
Interleaved = Annotated[
    bool, Field(description="Whether units take turns (0, 1, 2, …, 0, 1, 2, …) instead of following each other whole.")
]
Blocks = Annotated[
    tuple[Strides, ...] | None,
    Field(min_length=1, description="Instead: the units' places as nested strides, for units that lie apart."),
]


class DeclaredMember(Section):
    """One dimension of some tensors through which the group runs."""

    tensor: Pattern = Field(
        description="Name of a parameter or persistent buffer; {layer} stands for a layer's index, * for any text "
        "between dots, [qk] for one of these characters."
    )
    dim: int = Field(0, ge=0, description="The dimension.")
    consumes: bool = Field(
        False, description="Whether the model sums over this dimension, so that zeroing it silences a unit."
    )
    start: Start = None
    length: Length = None
    interleaved: Interleaved = False
    blocks: Blocks = None

    @model_validator(mode="after")
    def _check(self) -> DeclaredMember:
        _check_placed(self)
        return self


class DeclaredMask(Section):
    """A place where units can be silenced: exactly one of ``input``, ``weight`` and ``logits``."""

    input: Pattern | None = Field(None, description="A module: the last dimension of its first argument is masked.")
    weight: UnitPattern | None = Field(
        None, description="A tensor: its dimension is masked. With {unit}, the whole tensor of a unit is."
    )
    logits: Pattern | None = Field(
        None, description="A module: what it hands to a softmax or top-k is set to -inf for silent units."
    )
    dim: int | None = Field(None, description="Of weight (0 by default) or logits (the last by default).")
    function: Literal["softmax", "topk"] = Field("softmax", description="With logits: the function.")
    call: int = Field(0, ge=0, description="With logits: which call of the function inside the module, from 0.")
    start: Start = None
    length: Length = None
    interleaved: Interleaved = False
    blocks: Blocks = None

    @model_validator(mode="after")
    def _check(self) -> DeclaredMask:
        _check_placed(self)
        given = [name for name in ("input", "weight", "logits") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of input, weight and logits, got {' and '.join(given) or 'none of them'}"
            )
        if given == ["input"] and self.dim is not None:
            raise ValueError("an input is masked along its last dimension; leave dim out")
        if given == ["weight"] and (self.dim or 0) < 0:
            raise ValueError(f"expected a dimension of the weight counted from 0, got {self.dim}")
        if given == ["logits"] and not self.as_in_weight:
            raise ValueError("units of logits are their whole dimension, in order; leave out where they lie")
        return self

    @property
    def as_in_weight(self) -> bool:
        """Whether nothing is said about where units lie."""
        return (self.start, self.length, self.interleaved, self.blocks) == (None, None, False, None)


def _check_placed(given: DeclaredMember | DeclaredMask) -> None:
    if given.blocks is not None and (given.start is not None or given.length is not None or given.interleaved):
        raise ValueError("expected either start, length and interleaved, or blocks, got both")


class DeclaredGroup(Section):
    """A group that the tracer cannot find, or cannot find all of."""

    role: str = Field(
        pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$", description="What its units are, such as moe.expert; for targets."
    )
    name: Pattern | None = Field(
        None, description="Its name; by default the traced one, or the path its tensors share and the role."
    )
    layers: Layers | None = Field(
        None, description="Which {layer} to take, as in targets; all that have the tensors by default."
    )
    size: Annotated[int | str | None, BeforeValidator(_is_size)] = Field(
        None, description="Number of units, or the path of an integer that says it; where nothing else tells."
    )
    members: tuple[DeclaredMember, ...] = Field((), description="What goes when a unit goes, as slices of tensors.")
    entries: Pattern | None = Field(
        None, description="A module list whose entries are the units: entry u goes whole when unit u goes."
    )
    mask: tuple[DeclaredMask, ...] = Field(
        (), description="Where units are silenced; by default where the tracer found, and at members that consume."
    )
    sizes: dict[Pattern, Formula] = Field(
        {},
        description="Integers that follow: an attribute's path and 'size', '8*size', '8*size + 4', or 'size + rest' "
        "for what else is in it now.",
    )
    completes: Annotated[bool | str, BeforeValidator(_is_completion)] = Field(
        False,
        description="Whether traced groups that are frozen are a part of this one, or the name of one that is: their "
        "members join it and their reasons are lifted.",
    )
    minimum: int = Field(1, ge=1, description="How many units must stay.")
    inexact: str | None = Field(
        None, min_length=1, description="Why removing is not the same as silencing, where it is not."
    )

    @model_validator(mode="after")
    def _has_units(self) -> DeclaredGroup:
        if not self.members and self.entries is None:
            raise ValueError("expected members, or entries of a module list, that go with a unit; got neither")
        return self


def coefficients(formula: str) -> tuple[int, int | None]:
    """``(8, 4)`` for ``8*size + 4``; None in the second place for ``8*size + rest``."""
    match = _FORMULA.fullmatch(formula)
    assert match is not None, formula
    before, after, sign, constant, rest = match.groups()
    return int(before or 1) * int(after or 1), None if rest else int(constant or 0) * (-1 if sign == "-" else 1)


def shipped() -> tuple[str, ...]:
    """The architectures whose groups are shipped, sorted; ``groups: "architecture:<name>"`` takes them."""
    folder = resources.files("graphprune.specs") / "architectures"
    names = [entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")] if folder.is_dir() else []
    return tuple(sorted(name for name in names if _shipped(name)))


def _shipped(name: str) -> list[Any]:
    file = resources.files("graphprune.specs") / "architectures" / f"{name}.yaml"
    value, _, _ = read_yaml(file.read_text(encoding="utf-8"))
    found = value.get("groups") if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _expanded(value: Any) -> Any:
    """Groups with the shipped ones in place of their names."""
    value = as_tuple(value)
    if not isinstance(value, list | tuple):
        return value
    out: list[Any] = []
    for item in value:
        if not isinstance(item, str):
            out.append(item)
            continue
        name = item.removeprefix(SHIPPED)
        if not item.startswith(SHIPPED) or name not in shipped():
            known = ", ".join(SHIPPED + n for n in shipped()) or "none"
            raise ValueError(f"expected a declared group, or the name of shipped ones ({known}), got {item!r}")
        out.extend(_shipped(name))
    return out


Groups = Annotated[
    tuple[DeclaredGroup, ...],
    BeforeValidator(_expanded, json_schema_input_type=str | tuple[str | DeclaredGroup, ...]),
]
