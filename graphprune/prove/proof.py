"""The outcome of a proof: a value that can be printed, compared and dumped."""

from __future__ import annotations

from typing import Literal

from graphprune.graph import Value

Fate = Literal["exact", "inexact", "frozen"]


class ProofRow(Value):
    """What was found for one kind: all groups of one role that share one fate.

    Attributes:
        role: of the groups; ``"together"`` for the plan that prunes all kinds at once.
        fate: whether removal is exact, inexact or forbidden (``frozen``), as the graph says.
        reason: why it is inexact or frozen.
        groups: how many groups.
        units: units of all of them.
        difference: the largest |masked − reshaped| of a logit, over all plans; None where nothing was compared.
        scale: the largest |logit|.
        effect: the largest |masked − dense| of a logit; a comparison where it is tiny proves nothing.
        alive: dimensions of tensors of which a removed slice still had a gradient under the mask.
        generates: whether masked and reshaped model generate the same tokens; None where that was not tried.
        reloads: whether the saved and loaded model gives the same logits and tokens; None where that was not tried.
        tier: of the saved folder (``hf``, ``hf-remote-code`` or ``graphprune``).
        notes: what could not be tried, and why.
        problem: what disproves the kind; None where nothing does.
    """

    role: str
    fate: Fate
    reason: str | None = None
    groups: int
    units: int
    difference: float | None = None
    scale: float | None = None
    effect: float | None = None
    alive: tuple[str, ...] = ()
    generates: bool | None = None
    reloads: bool | None = None
    tier: str | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing disproves this kind."""
        return self.problem is None

    @property
    def relative(self) -> float | None:
        """The difference as a fraction of the largest logit."""
        if self.difference is None or not self.scale:
            return None
        return self.difference / self.scale

    def __str__(self) -> str:
        size = "" if self.relative is None else f"  difference {self.relative:.1e} of the largest logit"
        flags = [("generates", self.generates), ("reloads", self.reloads)]
        said = "".join(f"  {name}: {'yes' if value else 'NO'}" for name, value in flags if value is not None)
        tier = f" ({self.tier})" if self.tier else ""
        tail = f"  {self.problem or ''}" if self.problem else ""
        return f"{self.role} ({self.groups} groups, {self.units} units): {self.fate}{size}{said}{tier}{tail}"


class Proof(Value):
    """One row per kind of the graph, and one for all kinds together.

    Attributes:
        rows: see :class:`ProofRow`.
        tolerance: how far logits may be apart, as a fraction of the largest one.
        seed: of inputs and plans.
    """

    rows: tuple[ProofRow, ...]
    tolerance: float
    seed: int

    @property
    def ok(self) -> bool:
        """Whether nothing is disproved."""
        return all(row.ok for row in self.rows)

    @property
    def problems(self) -> tuple[str, ...]:
        """What disproves a kind, with its role."""
        return tuple(f"{row.role}: {row.problem}" for row in self.rows if row.problem is not None)

    def __str__(self) -> str:
        return "\n".join(["proved" if self.ok else "DISPROVED", *(str(row) for row in self.rows)])
