"""The table of rules, and the view a rule has of the operation it explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graphprune.trace.axes import Expr
from graphprune.trace.record import Info, Kind

if TYPE_CHECKING:
    from graphprune.trace.tracer import Tracer

Rule = Callable[["Call"], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for ATen operations by packet name (``mm``, ``_softmax``), all overloads alike."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def rule_of(operation: Any) -> tuple[str, Rule | None]:
    """The name and the rule of an ATen operation; an operation in place is explained as what it does, out of place.

    Results are recorded after it ran, so that a tensor that was changed in place gets the axes that it has by then.
    """
    name: str = operation._schema.name.split("::")[-1]
    if name in RULES:
        return name, RULES[name]
    if torch.Tag.pointwise in operation.tags:
        return name, RULES[POINTWISE]
    plain = name.removesuffix("_")
    if plain == name or name.endswith("__") or plain in _SIZED:
        return name, None
    packet = getattr(torch.ops.aten, plain, None)
    if plain not in RULES and packet is not None:
        tags = [getattr(packet, overload).tags for overload in packet.overloads()]
        if any(torch.Tag.pointwise in t for t in tags):
            return plain, RULES[POINTWISE]
    return (plain, RULES[plain]) if plain in RULES else (name, None)


POINTWISE = "pointwise"
"""The name of the rule for everything that carries ``torch.Tag.pointwise``."""
_SIZED = frozenset({"as_strided"})
"""Their rules ask for the shape that a tensor had before, which in place is lost."""


@dataclass
class Call:
    """One executed operation: arguments by schema name, result tensors, and the tracer's records."""

    tracer: Tracer
    name: str
    arguments: dict[str, Any]
    outputs: tuple[torch.Tensor, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or ``default`` where the schema has none of that name."""
        return self.arguments.get(name, default)

    def info(self, tensor: torch.Tensor) -> Info:
        """What is known of an argument."""
        return self.tracer.info(tensor)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensor arguments in order, lists flattened."""
        found: list[torch.Tensor] = []
        for value in self.arguments.values():
            items: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
            found.extend(item for item in items if isinstance(item, torch.Tensor))
        return found

    def origin(self, *tensors: torch.Tensor) -> dict[str, Any]:
        """Kind, parameters and uniformity of something computed from ``tensors``."""
        infos = [self.info(t) for t in tensors]
        kind = max((i.kind for i in infos), default=Kind.CONSTANT)
        params = frozenset().union(*(i.params for i in infos)) if kind is Kind.WEIGHT else frozenset()
        return {"kind": kind, "params": params, "uniform": all(i.uniform for i in infos) and bool(infos)}

    def put(self, dims: Sequence[Expr], *sources: torch.Tensor, output: int = 0, **extra: Any) -> None:
        """Records the axes of an output computed from ``sources`` (all tensor arguments if none is named)."""
        origin = self.origin(*(sources or self.tensors))
        self.tracer.put(self.outputs[output], tuple(dims), **{**origin, **extra})


def positive(dim: int, ndim: int) -> int:
    """A dimension index counted from the front."""
    return dim % ndim if ndim else 0
