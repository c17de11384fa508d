"""One-shot scores: run calibration batches, and let a criterion judge every unit that a spec may remove."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.errors import CriterionError, DataError, NonFiniteError
from graphprune.graph import DependencyGraph, Group
from graphprune.importance.base import Criterion, Observation, Signal
from graphprune.masking import masked
from graphprune.names import bare
from graphprune.observe import Observer
from graphprune.observe.factors import factor_parameters
from graphprune.placement import input_device
from graphprune.plan import PrunePlan
from graphprune.schema import Lora, PruneSpec
from graphprune.validate import resolve_targets

_NEEDS_FORWARD = frozenset({Signal.INPUT_NORM})
_NEEDS_BACKWARD = frozenset({Signal.LORA, Signal.WEIGHT_GRADIENT, Signal.SQUARED_GRADIENT, Signal.MASK_GRADIENT})
_IGNORED_LABEL = -100

Batch = Mapping[str, Any]


def score(
    model: nn.Module,
    graph: DependencyGraph,
    spec: PruneSpec,
    batches: Iterable[Batch] = (),
    *,
    criterion: Criterion | None = None,
    gone: PrunePlan | None = None,
) -> dict[str, Tensor]:
    """Scores every group that the spec's targets select, once, without training; the model stays exactly as it is.

    Runs what the criterion needs: nothing for weights alone, forward passes for input norms, forward and backward
    passes for gradients; without dropout, in whatever precision the model has. The mean over data stands where
    :attr:`~graphprune.importance.base.Criterion.expectation` says: by default in the gradient, over batches, as in
    LLM-Pruner. With squared gradients (Fisher information) there is one backward pass per sample, and the mean is
    over samples.

    The ``lora`` criterion on a model without adapters gets fresh ones for the time of scoring, as ``spec.lora``
    says, seeded by ``spec.seed``. There B = 0, hence ∂A = 0, and the surrogate of Eq. 10 is ∂B·A: the gradient of the
    weight seen through one random projection, G·AᵀA up to the scaling.

    Args:
        model: bare or PEFT-wrapped; batches are moved to the device where it reads its inputs.
        graph: the model's dependency graph.
        spec: says what is selected (targets), judged how (criterion), and seen through what adapters (lora).
        batches: mappings with ``input_ids`` of shape (batch, length), optionally ``attention_mask`` and ``labels``,
            which default to the input ids without padding. Read once, and kept until the end.
        criterion: instead of the spec's.
        gone: units that are silenced meanwhile, as if an earlier plan had removed them; their own scores mean nothing.
            Criteria of weights alone still see theirs.

    Returns:
        By group name float32 tensors of shape ``(group.size,)`` on the CPU, higher = keep.

    Raises:
        SpecError: if a target selects nothing.
        PlanError: if ``gone`` belongs to another graph, or has a group that cannot be masked.
        DataError: if the criterion needs batches and there are none, or a batch has no ``input_ids``.
        CriterionError: if the criterion cannot score a group.
        NonFiniteError: if a loss, gradient or score is NaN or infinite; names the tensor or group and the batch.
    """
    criterion = criterion if criterion is not None else spec.criterion.build()
    groups = tuple(g for target in resolve_targets(spec, graph) for g in target.groups)
    signals = criterion.signals
    if not signals & (_NEEDS_FORWARD | _NEEDS_BACKWARD):
        with Observer(model, graph, groups, signals) as seen, torch.no_grad():
            return score_groups(criterion, groups, seen)
    data = _checked(batches, criterion.name)
    if Signal.SQUARED_GRADIENT in signals or criterion.expectation == "sample":
        data = [sample for batch in data for sample in _samples(batch)]
    with _untouched(model), _adapters(model, graph, groups, spec, signals) as wrapped:
        backward = bool(signals & _NEEDS_BACKWARD)
        backwards = 1 if criterion.expectation != "gradient" else len(data)
        silenced = nullcontext() if gone is None else masked(wrapped, gone, graph)
        observer = Observer.for_criterion(wrapped, graph, groups, criterion, backwards)
        with torch.set_grad_enabled(backward), silenced, observer as seen:
            run = _Run(wrapped, seen, criterion, groups, backward=backward)
            return run.mean_of_scores(data) if criterion.expectation != "gradient" else run.score_of_mean(data)


def score_groups(criterion: Criterion, groups: Iterable[Group], seen: Observation, when: str = "") -> dict[str, Tensor]:
    """One score per unit of every group, checked: float32 on the CPU.

    Args:
        criterion: the judge.
        groups: the groups to score.
        seen: what was observed.
        when: added to error messages, such as ``"in batch 3"``.

    Raises:
        CriterionError: for scores of a wrong shape.
        NonFiniteError: for scores that are NaN or infinite.
    """
    scores = {}
    for group in groups:
        with torch.no_grad():
            found = criterion.score(group, seen).detach().to("cpu", torch.float32)
        if found.shape != (group.size,):
            raise CriterionError(
                f"criterion '{criterion.name}' was expected to give {group.size} scores for group '{group.name}', "
                f"got shape {tuple(found.shape)}"
            )
        check_finite(group, found, when)
        scores[group.name] = found
    return scores


def check_finite(group: Group, scores: Tensor, when: str = "") -> None:
    """Raises :class:`~graphprune.errors.NonFiniteError`, naming the group, unless all of its scores are finite."""
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"group '{group.name}': {len(bad)} of {group.size} scores are NaN or infinite{_spaced(when)}, the first "
            f"for unit {bad[0]} ({scores[bad[0]].item()}). Score in bfloat16 or float32, or look for overflow in the "
            "model's weights."
        )


class _Run:
    """Calibration batches going through a model under observation."""

    def __init__(
        self, model: nn.Module, seen: Observer, criterion: Criterion, groups: Sequence[Group], *, backward: bool
    ) -> None:
        self._model, self._seen, self._criterion, self._groups = model, seen, criterion, groups
        self._backward = backward
        self._device = input_device(model)
        takes = inspect.signature(bare(model).forward).parameters
        self._more = {"use_cache": False} if "use_cache" in takes else {}

    def score_of_mean(self, data: Sequence[Batch]) -> dict[str, Tensor]:
        """The score of the mean gradient over all batches, or of everything that passed."""
        for index, batch in enumerate(data):
            self._see(batch, index, len(data))
        return score_groups(self._criterion, self._groups, self._seen)

    def mean_of_scores(self, data: Sequence[Batch]) -> dict[str, Tensor]:
        """The mean over batches of their scores."""
        total = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in self._groups}
        for index, batch in enumerate(data):
            self._seen.reset()
            for parameter in self._model.parameters():
                parameter.grad = None
            self._see(batch, index, 1)
            scores = score_groups(self._criterion, self._groups, self._seen, f"in batch {index}")
            for name, found in scores.items():
                total[name] += found
        return {name: (value / len(data)).float() for name, value in total.items()}

    def _see(self, batch: Batch, index: int, count: int) -> None:
        batch = {k: v.to(self._device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        if not self._backward:
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            self._model(**inputs, **self._more)
            return
        batch.setdefault("labels", _labels(batch))
        loss = self._model(**batch, **self._more).loss
        if not loss.isfinite():
            raise NonFiniteError(
                f"the loss of batch {index} is {loss.item()}, expected a number. Check the batch for rows without "
                "any label, and the model for overflow (load it in bfloat16 or float32)."
            )
        if not loss.requires_grad:
            raise CriterionError(
                f"the loss of batch {index} does not depend on anything that criterion '{self._criterion.name}' "
                "observes. Choose another criterion for these groups, such as taylor."
            )
        (loss / count).backward()
        broken = self._seen.nonfinite()
        if broken is not None:
            raise NonFiniteError(
                f"{broken} is NaN or infinite after batch {index}, whose loss is {loss.item():.4g}. "
                "Load the model in bfloat16 or float32."
            )


def _checked(batches: Iterable[Batch], name: str) -> list[Batch]:
    data = list(batches)
    if not data:
        raise DataError(
            f"criterion '{name}' needs calibration batches, got none. Pass mappings with 'input_ids', or choose a "
            "criterion that looks at weights alone, such as magnitude."
        )
    for index, batch in enumerate(data):
        ids = batch["input_ids"] if isinstance(batch, Mapping) and "input_ids" in batch else None  # type: ignore[redundant-expr]
        if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
            got = f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(batch).__name__
            raise DataError(f"batch {index}: expected a mapping with 'input_ids' of shape (batch, length), got {got}")
    return data


def _samples(batch: Batch) -> Iterator[Batch]:
    size = len(batch["input_ids"])
    for index in range(size):
        yield {
            key: value[index : index + 1] if isinstance(value, Tensor) and len(value) == size else value
            for key, value in batch.items()
        }


def _labels(batch: Batch) -> Tensor:
    ids: Tensor = batch["input_ids"]
    mask = batch.get("attention_mask")
    return ids if mask is None or mask.ndim != 2 else ids.masked_fill(mask == 0, _IGNORED_LABEL)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Inside, evaluation mode and no parameter that collects a gradient; outside, everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    states = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in states:
            parameter.grad = None
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in states:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def _adapters(
    model: nn.Module, graph: DependencyGraph, groups: Sequence[Group], spec: PruneSpec, signals: frozenset[Signal]
) -> Iterator[nn.Module]:
    """The model with trainable adapters, if these are to be looked at: its own, or fresh ones that go again."""
    if Signal.LORA not in signals:
        yield model
        return
    tensors = dict.fromkeys(m.tensor for g in groups for m in g.members)
    own = [p for tensor in tensors for p in factor_parameters(model, tensor)]
    adapted = bool(own) or bare(model) is not model
    with nullcontext(model) if adapted else _fresh(model, graph, groups, spec.lora, spec.seed) as wrapped:
        for tensor in tensors:
            for parameter in factor_parameters(wrapped, tensor):
                parameter.requires_grad_(True)
        yield wrapped


@contextmanager
def _fresh(
    model: nn.Module, graph: DependencyGraph, groups: Sequence[Group], lora: Lora, seed: int
) -> Iterator[nn.Module]:
    from graphprune.engine.adapters import attach

    before = set(vars(model))
    places = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}  # meta: offloaded
    kind = next((place.type for place in places), "cuda")
    with torch.random.fork_rng(devices=list(places), device_type=kind):
        torch.manual_seed(seed)
        wrapped: Any = attach(model, graph, groups, lora)
    try:
        wrapped.eval()
        yield wrapped
    finally:
        wrapped.unload()
        for key in set(vars(model)) - before:  # PEFT leaves its configuration on the model
            delattr(model, key)


def _spaced(text: str) -> str:
    return f" {text}" if text else ""
