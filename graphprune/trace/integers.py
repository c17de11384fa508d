"""Python numbers that remember which attribute they were read from.

A forward that reads ``self.num_heads`` must be told when heads are removed. Guessing the attribute by its value is
dangerous (eight heads, a window of eight), so the tracer replaces integer attributes by :class:`TracedInt` while it
runs: when one arrives in a view, a slice or a split, the axis it measures is known. Floats are remembered to find the
epsilon that a norm adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, ClassVar

import torch
from typing_extensions import Self

Source = tuple[str, str]
"""(owner, attribute): owner is a module path, or 'config' with the path of a sub-config."""
Monomial = tuple[tuple[Source, int], ...]
"""A product of sources with their exponents, sorted; exact quotients have negative exponents."""
Terms = dict[Monomial, Fraction]
"""A sum of monomials with coefficients."""

AXIS = "#axis"
"""Owner of the sources that are lengths of traced axes, read from a tensor's shape."""


class TracedInt(int):
    """An integer with a polynomial over the attributes it was computed from."""

    terms: Terms
    compared: ClassVar[Callable[[int, int], None] | None] = None
    """Told of every comparison that held, while a trace runs."""
    computed: ClassVar[Callable[[int], None] | None] = None
    """Told of every number that was turned into one that remembers nothing, while a trace runs."""

    def __new__(cls, value: int, terms: Terms) -> Self:
        number = super().__new__(cls, value)
        number.terms = terms
        return number

    def __eq__(self, other: object) -> bool:
        equal = int(self) == other
        if equal and isinstance(other, int) and TracedInt.compared is not None:
            TracedInt.compared(self, other)
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        product: Terms = {}
        for left, a in self.terms.items():
            for right, b in terms_of(other).items():
                key = _join(left, right, 1)
                product[key] = product.get(key, 0) + a * b
        return TracedInt(int(self) * int(other), product)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        return self._sum(other, 1, 1)

    def __radd__(self, other: Any) -> Any:
        return self._sum(other, 1, 1)

    def __sub__(self, other: Any) -> Any:
        return self._sum(other, 1, -1)

    def __rsub__(self, other: Any) -> Any:
        return self._sum(other, -1, 1)

    def __floordiv__(self, other: Any) -> Any:
        return _quotient(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _quotient(other, self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return self._forget() ** other if modulus is None else pow(self._forget(), other, modulus)

    def __truediv__(self, other: Any) -> Any:
        return self._forget() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._forget()

    def __float__(self) -> float:
        return float(self._forget())

    def _forget(self) -> int:
        if TracedInt.computed is not None:
            TracedInt.computed(self)
        return int(self)

    def _sum(self, other: Any, mine: int, theirs: int) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        total = {key: mine * a for key, a in self.terms.items()}
        for key, b in terms_of(other).items():
            total[key] = total.get(key, 0) + theirs * b
        return TracedInt(mine * int(self) + theirs * int(other), {k: c for k, c in total.items() if c})

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedInt:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


class TracedFloat(float):
    """A number that remembers the module attribute it was read from; what is computed with it is a plain number."""

    source: Source

    def __new__(cls, value: float, source: Source) -> Self:
        number = super().__new__(cls, value)
        number.source = source
        return number

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedFloat:
        return self

    def __reduce__(self) -> Any:
        return float, (float(self),)


def _join(left: Monomial, right: Monomial, sign: int) -> Monomial:
    exponents = dict(left)
    for source, exponent in right:
        exponents[source] = exponents.get(source, 0) + sign * exponent
    return tuple(sorted((s, e) for s, e in exponents.items() if e))


def _quotient(over: Any, under: Any) -> Any:
    """An exact quotient by a single term keeps its provenance; any other is a plain integer."""
    if not isinstance(over, int) or not isinstance(under, int):
        return NotImplemented
    value = int(over) // int(under)
    above, below = terms_of(over), terms_of(under)
    if value * int(under) == int(over) and len(below) == 1:
        ((right, b),) = below.items()
        return TracedInt(value, {_join(left, right, -1): a / b for left, a in above.items()})
    return value


def terms_of(number: int) -> Terms:
    """The polynomial of a number; a plain integer is a constant."""
    return number.terms if isinstance(number, TracedInt) else {(): Fraction(int(number))}


def _read(value: int, owner: str, attribute: str) -> TracedInt:
    return TracedInt(value, {(((owner, attribute), 1),): Fraction(1)})


@contextmanager
def traced_numbers(model: torch.nn.Module) -> Iterator[None]:
    """Replaces the integers (and tuples of them) of modules and configs, and the floats of modules, for a while."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[int] = set()

    def plant(attributes: dict[str, Any], owner: str) -> None:
        if id(attributes) in seen:
            return
        seen.add(id(attributes))
        for name, value in list(attributes.items()):
            if type(value) is int and value > 1 and not name.startswith("_"):
                replaced.append((attributes, name, value))
                attributes[name] = _read(value, owner, name)
            elif type(value) is tuple and value and all(type(v) is int for v in value) and not name.startswith("_"):
                replaced.append((attributes, name, value))
                attributes[name] = tuple(_read(v, owner, f"{name}[{i}]") for i, v in enumerate(value))
            elif type(value) is float and not owner.startswith("config"):
                replaced.append((attributes, name, value))
                attributes[name] = TracedFloat(value, (owner, name))

    try:
        for owner, config in configs_of(model):
            plant(vars(config), owner)
        for path, module in model.named_modules():
            plant(vars(module), path)
            own = vars(module).get("config")
            if hasattr(own, "__dict__"):  # a view that this module alone reads; shared ones are planted already
                plant(vars(own), "config")
        yield
    finally:
        for attributes, name, value in replaced:
            attributes[name] = value


def configs_of(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The model's config and its sub-configs as ('config', …), ('config.text_config', …)."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "__dict__"):
        return
    yield "config", config
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield f"config.{name}", value
