"""The steps of a proof for one kind of group; what one of them raises disproves that kind and no other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from graphprune.checkpoint.load import load
from graphprune.checkpoint.manifest import Manifest
from graphprune.checkpoint.save import save
from graphprune.graph import DependencyGraph, Group
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.prove import subject
from graphprune.prove.liveness import liveness, unlearnable
from graphprune.prove.plans import Trial
from graphprune.prove.precise import computing_in_float64, in_float64, widened
from graphprune.prove.proof import Fate, ProofRow
from graphprune.prove.subject import Generated
from graphprune.reshape.apply import cut_model
from graphprune.reshape.config import settle_config

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model under proof, in evaluation mode, and how it is asked.

    Attributes:
        model: it is never changed.
        graph: its dependency graph.
        inputs: keyword arguments of its forward.
        dense: its logits for them.
        seed: of the random projection whose gradient is taken.
        tolerance: how far logits may always be apart, as a fraction of the largest one.
        prompt: what it generates from; None where it is not asked to.
        cache: whether it generates with a cache, or why it cannot generate.
        reload: the roles of which copies are saved and loaded; True for all.
    """

    model: nn.Module
    graph: DependencyGraph
    inputs: Mapping[str, Any]
    dense: Tensor
    seed: int
    tolerance: float
    prompt: Mapping[str, Any] | None = None
    cache: bool | str = True
    reload: bool | Collection[str] = False

    def masked_logits(self, plan: PrunePlan) -> Tensor:
        """The logits with the units of ``plan`` silenced."""
        with masked(self.model, plan, self.graph):
            return subject.logits_of(self.model, self.inputs)

    def cut(self, plan: PrunePlan) -> nn.Module:
        """A copy without the units of ``plan``."""
        small = subject.twin(self.model)
        cut_model(small, self.graph, plan)
        return small

    @cached_property
    def precise(self) -> Subject | None:
        """The same in float64, to be asked inside of :func:`computing_in_float64`; None where that does not run."""
        model, inputs = in_float64(self.model), widened(self.inputs)
        if model is None:
            return None
        try:
            with computing_in_float64(model):
                dense = subject.logits_of(model, inputs)
        except Exception:  # noqa: BLE001 - a model may refuse float64 in any way it likes
            return None
        prompt = None if self.prompt is None else widened(self.prompt)
        return replace(self, model=model, inputs=inputs, dense=dense, prompt=prompt)

    def difference(self, plan: PrunePlan, silent: Tensor) -> float:
        """How far the logits of a cut copy are from ``silent``, those of the masked model."""
        return subject.distance(subject.logits_of(self.cut(plan), self.inputs), silent)

    def texts(self, plan: PrunePlan) -> tuple[Generated, Generated]:
        """What the masked model and a cut copy generate."""
        assert self.prompt is not None
        cache = bool(self.cache)
        with masked(self.model, plan, self.graph):
            expected = subject.generated(self.model, self.prompt, cache=cache)
        return expected, subject.generated(self.cut(plan), self.prompt, cache=cache)

    @cached_property
    def _own_rounding(self) -> float:
        return subject.rounding(self.model, self.inputs, self.dense, self.seed)

    @property
    def usual(self) -> float:
        """What rounding does to the logits of a model that does not amplify it."""
        return self.tolerance * subject.magnitude(self.dense)

    def allowed(self, apart: float, scale: float | None = None) -> float:
        """What counts as rounding: the tolerance, or ten times the model's own where ``apart`` exceeds that.

        ``scale`` is the largest logit, by default of the dense model.
        """
        usual = self.tolerance * (subject.magnitude(self.dense) if scale is None else scale)
        return usual if apart <= usual else max(usual, 10 * self._own_rounding)

    def alike(self, left: Tensor, right: Tensor) -> bool:
        """Whether two tensors of logits are equal to rounding."""
        apart = subject.distance(left, right)
        return apart <= self.allowed(apart, subject.magnitude(left))

    def same_text(self, left: Generated, right: Generated) -> bool:
        """Whether generated logits agree, as long as the tokens before them are the same.

        Where tokens part although the logits agree, two tokens were tied. Rounding adds up from token to token and may
        turn a router round, so a hundred times the usual tolerance is allowed: a cache or a position gone wrong shows.
        """
        new = len(left.logits)
        if new != len(right.logits):
            return False
        begins = left.tokens.shape[1] - new
        parts = (left.tokens != right.tokens).any(0)[begins:].nonzero().flatten().tolist()
        common = (parts[0] if parts else new - 1) + 1
        apart = subject.distance(left.logits[:common], right.logits[:common])
        return apart <= self.allowed(apart, 100 * subject.magnitude(left.logits))


@dataclass
class Findings:
    """What is collected for the row of some groups.

    ``effect`` and ``difference`` are the largest of all trials.
    """

    subject: Subject
    role: str
    groups: tuple[Group, ...]
    difference: float | None = None
    effect: float | None = None
    alive: tuple[str, ...] = ()
    generates: bool | None = None
    reloads: bool | None = None
    tier: str | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether the graph promises that masked equals reshaped."""
        return all(g.exact for g in self.groups)

    @property
    def vacuous(self) -> bool:
        """Whether silencing the units that were drawn changes too little to be told from what cutting them changes."""
        if self.effect is None:
            return False
        noise = torch.finfo(torch.float32).eps * subject.magnitude(self.subject.dense)
        if self.exact and self.difference is not None:
            noise = max(noise, min(self.difference, self.subject.allowed(self.difference)))
        return self.effect <= 10 * noise

    def step(self, name: str, action: Callable[[], Result]) -> Result | None:
        """The result of ``action``, or None where it raises, which is a problem."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - a proof reports whatever goes wrong
            self.problems.append(f"{name}: {subject.told(error)}")
            return None

    def row(self, fate: Fate, reason: str | None) -> ProofRow:
        """The finished row."""
        return ProofRow(
            role=self.role,
            fate=fate,
            reason=reason,
            groups=len(self.groups),
            units=sum(g.size for g in self.groups),
            difference=self.difference,
            scale=None if fate == "frozen" else subject.magnitude(self.subject.dense),
            effect=self.effect,
            alive=self.alive,
            generates=self.generates,
            reloads=self.reloads,
            tier=self.tier,
            notes=tuple(self.notes),
            problem="; ".join(dict.fromkeys(self.problems)) or None,
        )

    def attempt(self, trials: Sequence[Trial]) -> None:
        """All steps; the last trial is the widest, and the slower ones take only that."""
        if not trials:
            if not self.problems:
                self.problems.append("vacuous: no group can lose a unit and keep its minimum")
            return
        for trial in trials:
            self.step(trial.name, lambda plan=trial.plan: self._compare(plan))  # type: ignore[misc]
        self._judge()
        if self.vacuous:
            return
        widest = trials[-1].plan
        self.step("gradients", lambda: self._gradients(widest))
        if isinstance(self.subject.cache, str):
            self.notes.append(self.subject.cache)
        elif self.subject.prompt is not None:
            self.step("generation", lambda: self._generates(widest))
        wanted = self.subject.reload
        if wanted if isinstance(wanted, bool) else self.role in wanted:
            self.step("reloading", lambda: self._reloads(widest))

    def _compare(self, plan: PrunePlan) -> None:
        silent = self.subject.masked_logits(plan)
        self.effect = max(self.effect or 0.0, subject.distance(silent, self.subject.dense))
        apart = self.subject.difference(plan, silent)
        if self.exact and not apart <= self.subject.usual:
            apart = self._precisely(plan, apart)
        self.difference = max(self.difference or 0.0, apart)

    def _precisely(self, plan: PrunePlan, apart: float) -> float:
        """The difference in float64 where there is none beyond rounding, else ``apart``, that in float32."""
        s = self.subject.precise
        if s is None:
            return apart
        with computing_in_float64(s.model):
            found = s.difference(plan, s.masked_logits(plan))
        if not found <= s.usual:
            return apart
        self.notes.append(
            f"compared in float64, because this model amplifies rounding: in float32 logits differ by {apart:.2g}"
        )
        return found

    def _judge(self) -> None:
        if self.difference is None or self.effect is None:
            return
        allowed = self.subject.allowed(self.difference)
        if self.exact and not self.difference <= allowed:
            said = f"masked and reshaped differ by {self.difference:.2g}, where {allowed:.2g} is rounding"
            self.problems.insert(0, said)
        if self.vacuous:
            self.problems.append(f"vacuous: the mask changes no logit by more than {self.effect:.2g}")

    def _gradients(self, plan: PrunePlan) -> None:
        s = self.subject
        if why := unlearnable(s.model, s.inputs):
            self.notes.append(f"gradients cannot be taken: {why}")
            return
        seen = liveness(s.model, s.graph, plan, s.inputs, s.seed)
        self.alive = seen.alive
        if seen.alive and self.exact:
            count = len(seen.alive)
            said = "1 removed slice has" if count == 1 else f"{count} removed slices have"
            self.problems.append(f"{said} a gradient under the mask: {_few(seen.alive)}")
        if len(seen.unreached) == sum(bool(units) for units in plan.removed.values()):
            self.problems.append("vacuous: no unit that stays has a gradient")
        elif seen.unreached:
            self.notes.append(f"no gradient reaches the units that stay of {_few(seen.unreached)}")

    def _generates(self, plan: PrunePlan) -> None:
        s = self.subject
        if not s.cache:
            self.notes.append("the unpruned model does not generate with a cache; generated without one")
        self.generates = s.same_text(*s.texts(plan))
        if not self.generates and self.exact and s.precise is not None:
            with computing_in_float64(s.precise.model):
                self.generates = s.precise.same_text(*s.precise.texts(plan))
            if self.generates:
                self.notes.append("generated in float64, because this model amplifies rounding")
        if not self.generates and self.exact:
            self.problems.append("masked and reshaped model generate different tokens or logits")

    def _reloads(self, plan: PrunePlan) -> None:
        s = self.subject
        small = s.cut(plan)
        settle_config(small)
        expected = subject.logits_of(small, s.inputs)
        with tempfile.TemporaryDirectory(prefix="graphprune-") as temporary:
            folder = save(small, Path(temporary) / "model")
            manifest = Manifest.read(folder)
            self.tier = manifest.tier
            if manifest.why_not_hf:
                self.notes.append(f"not a stock checkpoint: {manifest.why_not_hf}")
            loaded = load(folder, device=next(s.model.parameters()).device)
        self.reloads = s.alike(expected, subject.logits_of(loaded, s.inputs))
        if self.reloads and s.prompt is not None and isinstance(s.cache, bool):
            mine = subject.generated(small, s.prompt, cache=s.cache)
            self.reloads = s.same_text(mine, subject.generated(loaded, s.prompt, cache=s.cache))
        if not self.reloads:
            self.problems.append("the saved and loaded model gives other logits or tokens")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
