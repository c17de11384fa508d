"""When to prune, and how far towards the target: pure arithmetic over optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["cubic", "linear", "one_shot"]


@dataclass(frozen=True)
class Schedule:
    """Progress towards the target over ``steps`` optimizer steps, counted from 1.

    With T steps, a warm-up of ``w·T`` and a cool-down of ``c·T`` steps, the removed fraction of the target is

    - ``cubic``: ``f + (i − f)·(1 − (t − t0)/(T·(1 − w − c)))³`` with i = 0, f = 1 and t0 = w·T, the schedule
      of Zhu & Gupta, "To prune, or not to prune" (2017, https://arxiv.org/abs/1710.01878), used by LoRAPrune;
    - ``linear``: the same with exponent 1;
    - ``one_shot``: everything at once, right after the warm-up (at the first step where there is none).

    Pruning happens at the multiples of ``every`` inside the ramp and once more at its last step, where the
    fraction is exactly 1: the target is always reached, however short the run. (The published code prunes
    only while the ratio is strictly below the target and so never applies the target itself.)

    Attributes:
        kind: the shape of the ramp.
        warmup: fraction of the steps before pruning begins, in [0, 1).
        cooldown: fraction of the steps after the target is reached, in [0, 1).
        every: steps between two prune events.
        steps: optimizer steps of the whole run, at least 1.
    """

    kind: Kind
    warmup: float
    cooldown: float
    every: int
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise ValueError(f"a schedule needs at least one step, got steps={self.steps}, every={self.every}")
        if not (0 <= self.warmup < 1 and 0 <= self.cooldown < 1 and self.warmup + self.cooldown <= 1):
            raise ValueError(
                "warmup and cooldown are fractions of the run that together leave room to prune, "
                f"got warmup={self.warmup}, cooldown={self.cooldown}"
            )

    @cached_property
    def start(self) -> int:
        """The last step before the ramp (t0); 0 without warm-up."""
        return min(int(self.warmup * self.steps + 1e-9), self.steps - 1)

    @cached_property
    def end(self) -> int:
        """The step at which the target is reached."""
        if self.kind == "one_shot":
            return max(self.start, 1)
        return max(self.start + 1, self.steps - int(self.cooldown * self.steps + 1e-9))

    @cached_property
    def events(self) -> tuple[int, ...]:
        """The steps, from 1 to ``steps``, at which units are removed; the last one reaches the target."""
        if self.kind == "one_shot":
            return (self.end,)
        first = (self.start // self.every + 1) * self.every
        return (*range(first, self.end, self.every), self.end)

    def fraction(self, step: int) -> float:
        """The fraction of the target to be gone by ``step``: in [0, 1], growing, exactly 1 at the end."""
        if step >= self.end:
            return 1.0
        if step <= self.start or self.kind == "one_shot":
            return 0.0
        left = 1.0 - (step - self.start) / (self.end - self.start)
        return 1.0 - (left if self.kind == "linear" else left**3)
