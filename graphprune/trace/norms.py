"""Norms over a pruned axis: how removing units can be made equal to silencing them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphprune.graph import Member, NormScale
from graphprune.trace.axes import Atom
from graphprune.trace.findings import Findings
from graphprune.trace.functions import AVERAGES
from graphprune.trace.record import Norm
from graphprune.trace.tracer import Tracer

NORMED = frozenset({"mean_square", "normalised", "averaged"})
"""Marks of an axis over which something is averaged, so that a unit counts even where nobody reads it."""


@dataclass(frozen=True)
class Remedy:
    """What is done about the norms over one axis.

    Attributes:
        scales: scales (with their epsilons) that follow when units go; silenced units count as zeros.
        statistics: masks leave silenced units out of every average instead.
        reason: what remains different between removing and silencing, or None.
    """

    scales: tuple[NormScale, ...] = ()
    statistics: bool = False
    reason: str | None = None


def remedy(found: Findings, atom: Atom, members: Iterable[Member]) -> Remedy:
    """The remedy for the axis of ``atom``.

    A root mean square with a scale and an epsilon of its own is corrected when units go: the removed entries were zero,
    so the others keep their size. Anything else is averaged by masks over the units that stay.
    """
    flags = atom.flags
    if not flags & NORMED:
        return Remedy()
    if "averaged" in flags:
        return Remedy(reason="a statistic is taken over this axis, so removing units changes it for those that stay")
    scales = _scales(found, atom, members) if "normalised" not in flags else ()
    if scales and all(s.epsilon for s in scales):
        return Remedy(scales=scales)
    calls = sum(call.function in AVERAGES for call in found.calls[atom])
    if calls == len(found.averages[atom]):
        return Remedy(statistics=True)
    if scales:
        reason = "a root-mean-square norm runs over this axis; its scale is corrected, which leaves the norm's epsilon"
        return Remedy(scales=scales, reason=reason)
    return Remedy(reason="a norm or mean is taken over this axis, so removing units changes it for those that stay")


def _scales(found: Findings, atom: Atom, members: Iterable[Member]) -> tuple[NormScale, ...]:
    """The scales of the norms over this axis; empty unless every norm has one."""
    scales = [_scale_of(found.tracer, members, norm) for norm in found.norms[atom]]
    known = [scale for scale in scales if scale is not None]
    return tuple(dict.fromkeys(known)) if len(known) == len(scales) else ()


def _scale_of(tracer: Tracer, members: Iterable[Member], norm: Norm) -> NormScale | None:
    """The one vector along the axis by which a norm multiplies, with the norm's epsilon; None without a vector."""
    own = {m.tensor for m in members if m.tensor.rpartition(".")[0] == norm.module}
    if len(own) != 1 or len(tracer.parameters[min(own)]) != 1:
        return None
    offset = tracer.shifts.get(min(own), 0.0)
    if offset is None:
        return None
    epsilons = tracer.epsilons.get(norm.module, set())
    owner, attribute = next(iter(epsilons)) if len(epsilons) == 1 else ("", "")
    return NormScale(tensor=min(own), offset=offset, owner=owner, epsilon=attribute)
