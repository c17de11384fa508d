"""One observation of a model: which signals are recorded, and where criteria read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from graphprune import processes
from graphprune.compiled import forget, is_compiled
from graphprune.divided import is_divided
from graphprune.errors import CriterionError
from graphprune.graph import DependencyGraph, Group
from graphprune.importance.base import Criterion, LoraFactors, MemberCriterion, Observation, Signal
from graphprune.names import bare, plain, resolve_module, resolve_tensor
from graphprune.observe.factors import (
    BaseRows,
    GradientOf,
    base_shape,
    base_weight,
    factor_parameters,
    lora_factors,
    own_gradient,
)
from graphprune.observe.gates import GateRecorder
from graphprune.observe.gradients import GradientRecorder
from graphprune.observe.inputs import InputRecorder
from graphprune.observe.joint import JointGradients, JointScores
from graphprune.observe.streamed import MemberScores
from graphprune.observe.unsharded import settle
from graphprune.packed import keep_trainable, packed
from graphprune.placement import absent

_OF_WEIGHTS = frozenset({Signal.WEIGHT_GRADIENT, Signal.SQUARED_GRADIENT})


class _Recorder(Protocol):
    def open(self) -> None: ...
    def close(self) -> None: ...
    def reset(self) -> None: ...
    def share(self) -> None: ...


class Observer(Observation):
    """Records, inside its ``with`` block, what criteria ask for; outside of it the model is as it was.

    Gradients are summed over the backward calls since the last :meth:`reset`. As with gradient accumulation,
    the loss of each call is expected to be divided by the number of calls, so that the sum is the gradient of
    the mean loss. Squared gradients are Fisher information only if every backward call is of a single sample.

    Gradients of adapters are read from the adapters' ``grad`` when a criterion asks, so they are what the
    optimizer is going to see; they are the caller's to clear.

    Opened where gradients are enabled, it leaves forward passes without them (evaluations between training steps)
    aside; opened where they are disabled, it counts those. Parameters that are replaced while it is open are lost to
    it: open a new one after cutting a model.

    Args:
        model: bare or wrapped by PEFT; all names are resolved through the wrappers.
        graph: its dependency graph.
        groups: the groups that will be scored.
        signals: what to record.
        streamed: a criterion whose scores are taken inside each backward pass, instead of keeping weight gradients;
            see :meth:`for_criterion`.
        joint: whether processes average gradients as they come, instead of averaging scores, or gradients in the end.

    Attributes:
        loss_scale: the factor that losses carried (mixed precision in float16); gradients are divided by it.
        gradient_of: tells the gradients of adapters, where they do not hang on the adapters' parameters.

    Raises:
        CriterionError: if a signal cannot be recorded for a group.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: DependencyGraph,
        groups: Iterable[Group],
        signals: Iterable[Signal],
        streamed: MemberCriterion | None = None,
        *,
        joint: bool = False,
    ) -> None:
        settle(model)
        self._model = model
        self._groups = tuple(groups)
        self._signals = frozenset(signals)
        unknown = [g.name for g in self._groups if g.name not in graph.by_name]
        if unknown:
            raise CriterionError(f"group '{unknown[0]}' is not in the graph of this model; trace the model again")
        self._tensors = tuple(dict.fromkeys(m.tensor for g in self._groups for m in g.members))
        found = [resolve_tensor(model, name) for name in self._tensors]
        problem = absent(model, [tensor for tensor in found if not is_divided(tensor)])
        if problem is not None:
            raise CriterionError(f"the model's weights cannot be read: {problem}.")
        self._forwards = 0
        self._with_gradients = True
        self._open = ExitStack()
        self._rows: BaseRows | None = None  # of the tensor that is gone through now, from its first row on
        self.loss_scale = 1.0
        self.gradient_of: GradientOf = own_gradient
        sums, squares = Signal.WEIGHT_GRADIENT in self._signals, Signal.SQUARED_GRADIENT in self._signals
        if sums or squares:
            _check_gradients(model, self._tensors)
        self._streamed = streamed
        self._scores: MemberScores | None = None
        self._gradients: GradientRecorder | None = None
        if streamed is not None and (sums or squares):
            self._scores = (JointScores if joint else MemberScores)(model, self._groups, streamed, self)
        elif joint:
            self._gradients = JointGradients(model, self._tensors)
        elif sums or squares:
            self._gradients = GradientRecorder(model, self._tensors, sums=sums, squares=squares)
        self._inputs = InputRecorder(model, self._tensors) if Signal.INPUT_NORM in self._signals else None
        self._gates = GateRecorder(model, self._groups) if Signal.MASK_GRADIENT in self._signals else None

    @classmethod
    def for_criterion(
        cls,
        model: nn.Module,
        graph: DependencyGraph,
        groups: Iterable[Group],
        criterion: Criterion,
        backwards: int = 1,
        *,
        meeting: bool = False,
    ) -> Self:
        """An observer of what ``criterion`` reads, in the way that holds the least memory.

        Args:
            model: as above.
            graph: as above.
            groups: as above.
            criterion: what is going to read the observation.
            backwards: how many backward passes go into one score, over all processes.
            meeting: whether processes may exchange gradients inside their backward passes, which all of them begin
                and end together.
        """
        streamed = criterion if isinstance(criterion, MemberCriterion) else None
        if streamed is not None and streamed.streams(backwards):
            return cls(model, graph, groups, criterion.signals, streamed)
        first_order = criterion.signals & _OF_WEIGHTS == {Signal.WEIGHT_GRADIENT}
        if not (meeting and processes.count() > 1 and first_order):
            return cls(model, graph, groups, criterion.signals)
        if streamed is not None and backwards == processes.count() and streamed.streams(1):
            return cls(model, graph, groups, criterion.signals, streamed, joint=True)
        divided = any(is_divided(parameter) for parameter in model.parameters())
        return cls(model, graph, groups, criterion.signals, joint=divided)

    def __enter__(self) -> Self:
        keep_trainable(self._model)  # a forward pass without gradients could make its weights unreadable
        with ExitStack() as stack:
            if is_compiled(self._model):
                forget()
                stack.callback(forget)  # when all hooks are off again
            handle = bare(self._model).register_forward_pre_hook(self._count)
            stack.callback(handle.remove)
            for recorder in self._recorders():
                stack.callback(recorder.close)
                recorder.open()
            self._open = stack.pop_all()
        self._forwards = 0
        self._with_gradients = torch.is_grad_enabled()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows = None
        self._open.close()

    def reset(self) -> None:
        """Forgets the batches seen so far; call it after every optimizer step."""
        self._forwards = 0
        self._rows = None
        for recorder in self._recorders():
            recorder.reset()

    def share(self) -> None:
        """Takes in what the other processes of a data-parallel training have seen since the last :meth:`reset`.

        Afterwards everything is as if one process had seen the batches of all: gradients and scores of gradients are
        those of the mean over processes, input norms run over all tokens. Gradients of adapters are averaged already by
        what makes the training parallel. Every process must call it, once per score; alone it does nothing.
        """
        if processes.count() > 1:
            for recorder in self._recorders():
                recorder.share()

    def weight(self, tensor: str) -> Tensor:
        return base_weight(self._model, tensor)

    def shape(self, tensor: str) -> torch.Size:
        return base_shape(self._model, tensor)

    def weight_rows(self, tensor: str, start: int, stop: int) -> Tensor:
        # By a name of its own: backward passes run in one thread per device, and each may look at another tensor.
        rows = self._rows
        if rows is None or rows.tensor != tensor or not start:
            rows = self._rows = BaseRows(self._model, tensor)
        return rows(start, stop)

    def holder(self, tensor: str) -> nn.Module | None:
        return plain(resolve_module(self._model, tensor.rpartition(".")[0]))

    def gradient(self, tensor: str) -> Tensor:
        self._need(Signal.WEIGHT_GRADIENT)
        return self._unscaled(self._kept().sum(tensor))

    def squared_gradient(self, tensor: str) -> Tensor:
        self._need(Signal.SQUARED_GRADIENT)
        # Losses were divided by n = number of calls: mean of g² = Σ (n·h)² / n = n·Σ h² for recorded h = g/n.
        return self._unscaled(self._kept().sum_of_squares(tensor), degree=2) * self._forwards

    def lora(self, tensor: str) -> LoraFactors | None:
        self._need(Signal.LORA)
        factors = list(factor_parameters(self._model, tensor))
        hanging = self.gradient_of is own_gradient
        if factors and hanging and all(f.grad is None for f in factors) and not self._any_adapter_gradient():
            raise CriterionError(
                f"the adapter on '{tensor}' has no gradient, nor has any other. "
                "Run a backward pass with trainable adapters before scoring."
            )
        return lora_factors(self._model, tensor, self.gradient_of)

    def input_norm(self, tensor: str) -> Tensor | None:
        self._need(Signal.INPUT_NORM)
        assert self._inputs is not None
        return self._inputs.norm(tensor)

    def mask_gradient(self, group: Group) -> Tensor:
        self._need(Signal.MASK_GRADIENT)
        assert self._gates is not None
        return self._unscaled(self._gates.gradient(group))

    def member_scores(self, group: Group) -> Sequence[Tensor] | None:
        if self._scores is None:
            return None
        self._need(next(iter(self._signals & {Signal.WEIGHT_GRADIENT, Signal.SQUARED_GRADIENT})))
        assert self._streamed is not None
        degree = self._streamed.degree or 1
        # Losses were divided by n = number of calls: mean of s(g) = Σ n^k·s(h) / n for recorded h = g/n.
        spread = float(self._forwards) ** (degree - 1)
        return [self._unscaled(scores, degree) * spread for scores in self._scores.of(group)]

    def nonfinite(self) -> str | None:
        """The first gradient recorded since :meth:`reset` that is not finite, in words; None if all are."""
        found: dict[str, Tensor] = {}
        if self._gradients is not None:
            found.update((f"the gradient of '{name}'", value) for name, value in self._gradients.recorded())
        if self._scores is not None:
            found.update((f"the score by the gradient of '{name}'", value) for name, value in self._scores.recorded())
        if self._gates is not None:
            found.update((f"the mask gradient of group '{name}'", value) for name, value in self._gates.recorded())
        if Signal.LORA in self._signals:
            for name in self._tensors:
                for factor in factor_parameters(self._model, name):
                    gradient = self.gradient_of(factor)
                    if gradient is not None:
                        found[f"the gradient of the adapter on '{name}' ({tuple(gradient.shape)})"] = gradient
        return next((what for what, value in found.items() if not _finite(value)), None)

    def _recorders(self) -> list[_Recorder]:
        return [r for r in (self._gradients, self._scores, self._inputs, self._gates) if r is not None]

    def _count(self, module: nn.Module, args: object) -> None:
        self._forwards += torch.is_grad_enabled() == self._with_gradients

    def _unscaled(self, value: Tensor, degree: int = 1) -> Tensor:
        return value if self.loss_scale == 1.0 else value / self.loss_scale**degree

    def _kept(self) -> GradientRecorder:
        if self._gradients is None:
            raise CriterionError("gradients were reduced to scores inside the backward pass, so none was kept")
        return self._gradients

    def _any_adapter_gradient(self) -> bool:
        return any(f.grad is not None for t in self._tensors for f in factor_parameters(self._model, t))

    def _need(self, signal: Signal) -> None:
        if signal not in self._signals:
            raise CriterionError(
                f"the signal '{signal.value}' was not recorded. A criterion names every signal it reads in 'signals'."
            )
        if self._forwards == 0 and signal is not Signal.LORA:
            raise CriterionError(f"the signal '{signal.value}' was asked for before any batch was run")


def _check_gradients(model: nn.Module, tensors: Sequence[str]) -> None:
    """Codes have no gradient, and a zero in its place would rank every unit alike."""
    codes = [(name, found.kind) for name in tensors if (found := packed(model, name)) is not None]
    if codes:
        name, kind = codes[0]
        raise CriterionError(
            f"the criterion needs gradients of weights, and {len(codes)} of the {len(tensors)} tensors to be scored "
            f"are quantised and have none: '{name}' is {kind}. Choose lora, gate, wanda or magnitude, or load the "
            "model without quantisation."
        )


def _finite(value: Tensor) -> bool:
    # One number per tensor crosses to the host; a sum is finite in float32 unless an element is not.
    return bool(value.sum(dtype=torch.promote_types(value.dtype, torch.float32)).isfinite())
