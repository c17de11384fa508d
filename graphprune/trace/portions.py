"""Tensors with a portion for every layer: a table of vocabulary x (layers · width), say, that is divided among them.

Such an axis is known by the number that measures it, by which the config counts layers. A layer can be left out of it
if nothing computes across the portions, and portion i is read by layer i alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from graphprune.graph import Block, Member
from graphprune.trace.axes import Atom, Concat, Expr, Factor, length, matters, resolve
from graphprune.trace.integers import Monomial, Source
from graphprune.trace.record import Info, Kind, Records

if TYPE_CHECKING:
    from graphprune.trace.rules import Call

LAYERS = "layers"
"""The mark of an axis with one position per layer."""
_ALONG = frozenset(
    "_fused_rms_norm _to_copy _unsafe_view addmm alias bmm clone contiguous detach embedding expand linear matmul mean "
    "mm native_layer_norm permute reshape rms_norm slice squeeze sum t transpose unsqueeze var view".split()
)
"""Besides pointwise operations, those that leave every portion in its place where their results still have the axis."""
_PICKING = frozenset("select select_copy unbind unbind_copy".split())


@dataclass
class Portions:
    """What was seen of axes with one position per layer.

    Attributes:
        count: how many layers there are.
        counts: the numbers on the config that say so, as (owner, attribute).
        found: whether a stored tensor has such an axis.
        obstacle: why the portion of one layer cannot be left out; None if it can.
    """

    count: int = 0
    counts: frozenset[Source] = frozenset()
    found: bool = False
    obstacle: str | None = None

    def measured(self, terms: Iterable[tuple[Monomial, Fraction]], axis: Expr) -> None:
        """The forward gives ``axis`` a length: one that counts the layers marks it."""
        alone = [(((source, 1),), Fraction(1)) for source in self.counts]
        factors = resolve(axis)
        if list(terms) in [[term] for term in alone] and matters(axis) and len(factors) == 1:
            (factor,) = factors
            if isinstance(factor, Atom) and factor.size == self.count:
                factor.flags.add(LAYERS)
                self.found = True

    def used(self, info: Info, layer: int | None, where: str) -> None:
        """A tensor is read, inside of a layer or outside of all."""
        if info.portion not in (None, layer):
            reader = "outside of the layers" if layer is None else f"by layer {layer}"
            self._refuse(f"the portion of layer {info.portion} is read {reader}, in {where}")

    def follow(self, call: Call, records: Records, where: str, *, pointwise: bool) -> None:
        """An operation ran: it must leave the portions in their places, or take them one by one."""
        if not self.found or not any(self._has(records.infos.get(t)) for t in call.tensors):  # type: ignore[no-untyped-call]
            return
        if call.name in _PICKING and self._picked(call, records):
            return
        along = pointwise or call.name in _ALONG or call.name in _PICKING
        if not along or not all(self._has(records.infos.get(t)) for t in call.outputs):  # type: ignore[no-untyped-call]
            self._refuse(f"'{call.name}' in {where} computes across the portions of the layers")

    def _picked(self, call: Call, records: Records) -> bool:
        """Marks the portion of one layer, where this is what was taken."""
        tensor = call.tensors[0]
        info: Info = records.infos[tensor]
        dim = call.get("dim", 0) % tensor.ndim
        if not self._is_axis(info.dims[dim]):
            return False
        first = call.get("index", 0) % self.count
        for i, output in enumerate(call.outputs):
            records.infos[output] = replace(records.infos[output], portion=first + i)
        return True

    def members(self, parameters: Mapping[str, tuple[Expr, ...]]) -> Iterator[Member]:
        """The portions in every parameter that has them: unit u is the portion of layer u."""
        for name, dims in parameters.items():
            for d, axis in enumerate(dims):
                factors = list(_undivided(axis))
                for i, factor in enumerate(factors):
                    if self._marked(factor):
                        before, after = (math.prod(f.size for f in part) for part in (factors[:i], factors[i + 1 :]))
                        loops = ((before, after * self.count), (after, 1))
                        block = Block(start=0, unit_stride=after, loops=tuple(loop for loop in loops if loop[0] > 1))
                        yield Member(tensor=name, dim=d, size=self.count, length=length(axis), blocks=(block,))

    def why_not(self, axis: Expr, reader: str, parameters: Mapping[str, tuple[Expr, ...]]) -> str | None:
        """Why layers cannot go although ``axis``, which is measured by their number, has a part for each."""
        whole = all(
            resolve((factor,)) == (factor,) or self._is_axis((factor,))
            for dims in parameters.values()
            for expr in dims
            for factor in _undivided(expr)
            if self._marked(factor)
        )
        if self.found and whole and self._is_axis(axis):
            return self.obstacle
        return f"the forward of {reader} divides a tensor among the layers, which would have to be cut alike"

    def _refuse(self, reason: str) -> None:
        self.obstacle = self.obstacle or reason

    def _has(self, info: Info | None) -> bool:
        """Whether a tensor that depends on a parameter has an axis of layers."""
        if info is None or info.kind is Kind.CONSTANT:
            return False
        return any(self._is_axis((factor,)) for expr in info.dims for factor in _undivided(expr))

    def _is_axis(self, axis: Expr) -> bool:
        factors = list(_undivided(axis))
        return len(factors) == 1 and (self._marked(factors[0]) or _taken_apart(factors[0]) == self.count)

    def _marked(self, factor: Factor) -> bool:
        return isinstance(factor, Atom) and LAYERS in factor.flags and factor.size == self.count


def _undivided(axis: Expr) -> Iterator[Factor]:
    """The factors of an axis, as :func:`resolve` has them, but that an axis of layers is not taken apart."""
    for factor in axis:
        if isinstance(factor, Atom):
            root = factor.root()
            definition = None if LAYERS in root.flags else root.definition
            if definition is not None:
                yield from _undivided(definition)
            elif root.size != 1:
                yield root
        else:
            yield from resolve((factor,))


def _taken_apart(factor: Factor) -> int:
    """How many positions an axis has of which each was taken by itself; 0 for any other axis."""
    found = resolve((factor,))
    if len(found) != 1 or not isinstance(found[0], Concat):
        return 0
    return 0 if any(found[0].pieces) else len(found[0].pieces)
