"""The pruning side of a training run as a state machine: scores in, plans out. It touches no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphprune import processes, ranking
from graphprune.engine.average import SlidingAverage
from graphprune.engine.present import Present
from graphprune.engine.schedule import Schedule
from graphprune.errors import DistributedError, GraphPruneError
from graphprune.export.limits import Limits
from graphprune.graph import DependencyGraph, Group
from graphprune.importance import Criterion, Observation
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec
from graphprune.score import score_groups
from graphprune.validate import resolve_targets


@dataclass(frozen=True)
class PruneEvent:
    """One removal: at which optimizer step, how far towards the target, and what is gone since the start.

    ``removed`` counts units by role. ``loss`` is the last one the Trainer had logged, None before the first.
    """

    step: int
    fraction: float
    removed: dict[str, int]
    loss: float | None = None

    def __str__(self) -> str:
        units = ", ".join(f"{count} {role}" for role, count in self.removed.items()) or "nothing"
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"step {self.step}: {self.fraction:.1%} of the target, removed {units}{loss}"


class Pruner:
    """Averages the scores of every optimizer step and plans at the schedule's events; masks only grow.

    Args:
        graph: the model's dependency graph.
        spec: targets, scope, criterion and schedule are read.
        steps: optimizer steps of the run.
        limits: what the export asks of sizes.

    Raises:
        SpecError: if the spec does not fit the graph.
    """

    def __init__(self, graph: DependencyGraph, spec: PruneSpec, steps: int, limits: Limits | None = None) -> None:
        self.graph = graph
        self.spec = spec
        self.limits = limits
        self.groups: tuple[Group, ...] = tuple(g for t in resolve_targets(spec, graph) for g in t.groups)
        self.criterion: Criterion = spec.criterion.build()
        self.schedule = Schedule(**spec.schedule.model_dump(), steps=steps)
        self.average = SlidingAverage(spec.criterion.average)
        self.plan = PrunePlan.remove(graph, {})
        self.events: list[PruneEvent] = []
        self._due = set(self.schedule.events)

    @property
    def done(self) -> bool:
        """Whether the target has been reached, so that scores are no longer needed."""
        return not self._due

    def score(self, step: int, seen: Observation, present: Present | None = None) -> None:
        """Takes in what the batches of optimizer step ``step`` show, of a model that ``present`` tells the size of.

        Of several processes, each is given what the batches of all show (:meth:`graphprune.observe.Observer.share`), so
        their scores differ by rounding at most, on unlike devices. They agree on the mean.

        Raises:
            CriterionError: the criterion cannot score a group.
            NonFiniteError: a score is NaN or infinite; names the group and the step.
        """
        present = Present.of(self.graph) if present is None else present
        found = score_groups(self.criterion, present.groups(self.groups), seen, f"at step {step}")
        scores = present.spread(found, self.groups)
        self.average.update(dict(zip(scores, processes.mean(list(scores.values())), strict=True)))

    def advance(self, step: int, loss: float | None = None) -> PrunePlan | None:
        """The new plan if units go at ``step``, else None.

        An event for which there is no score yet (half-precision overflow in every step so far) is caught up
        with.
        """
        if not self.average.count or not any(event <= step for event in self._due):
            return None
        self._due = {event for event in self._due if event > step}
        return self._make(step, self.schedule.fraction(step), loss)

    def check_agreed(self) -> None:
        """Makes sure that every process removes the same units, by a checksum of the plan.

        Raises:
            DistributedError: if they do not.
        """
        if not processes.same(self.plan.model_dump_json()):
            step = self.events[-1].step if self.events else 0
            raise DistributedError(
                f"the {processes.count()} processes of this training disagree on what to remove at step {step}: "
                "expected the same plan in each. Make sure that all have the same weights, spec and versions of "
                "libraries, and that a criterion of your own gives every process the same scores."
            )

    def finish(self, step: int) -> PrunePlan:
        """The plan at the target, also for a run that was stopped before its schedule's last event.

        Raises:
            GraphPruneError: if no optimizer step was scored.
        """
        if not self.average.count:
            raise GraphPruneError(
                f"training ended after {step} optimizer steps and none could be scored, so nothing tells "
                "which units to remove. Train for more steps, or in a precision that does not overflow."
            )
        if not self.done:
            self._due.clear()
            self._make(step, 1.0, None)
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: ``averages``, ``count``, ``plan``, ``events`` and ``due``, all of them copies."""
        average = self.average.state_dict()
        return {
            "averages": average["values"],
            "count": average["count"],
            "plan": self.plan,
            "events": tuple(self.events),
            "due": tuple(sorted(self._due)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state_dict` of a pruner with the same graph, spec and steps.

        Raises:
            PlanError: if the plan was made for another graph.
        """
        state["plan"].check(self.graph)
        averages = state["averages"]
        values = {g.name: averages[g.name] for g in self.groups if g.name in averages}
        self.average.load_state_dict({"count": state["count"], "values": values})
        self.plan = state["plan"]
        self.events = list(state["events"])
        self._due = set(state["due"])

    def _make(self, step: int, fraction: float, loss: float | None) -> PrunePlan:
        self.plan = ranking.plan(
            self.graph, self.spec, self.average.values, fraction=fraction, base=self.plan, limits=self.limits
        )
        removed = {role: row["removed"] for role, row in self.plan.summary().items() if row["removed"]}
        self.events.append(PruneEvent(step, fraction, removed, loss))
        self.check_agreed()
        return self.plan
