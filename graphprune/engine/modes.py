"""The three ways to a smaller model: prune at once, prune at once and then tune, prune while tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, set_seed

from graphprune import processes, ranking
from graphprune.engine.adapters import attached, merge
from graphprune.engine.callback import PruneCallback
from graphprune.engine.completing import CompletingCallback
from graphprune.engine.data import collate
from graphprune.engine.original import Original
from graphprune.engine.pruner import PruneEvent
from graphprune.engine.rounds import batches_of_round, choose
from graphprune.engine.shared_folder import SharedFolder
from graphprune.engine.training import train
from graphprune.engine.uncoupled import choose_apart
from graphprune.errors import DataError
from graphprune.export.limits import Limits
from graphprune.graph import DependencyGraph, Group
from graphprune.importance import Signal
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.stacks import called_after
from graphprune.schema import PruneSpec
from graphprune.validate import resolve_targets


@dataclass(frozen=True)
class Job:
    """What a mode works on.

    Attributes:
        model: the bare model, on its device; a mode changes it in place.
        graph: its dependency graph.
        spec: what to do.
        data: training and calibration sequences; None where neither is needed.
        stage: a context manager that times the stage of the given name.
        measure: called with the pruned but untuned model, physically smaller or masked.
        progress: whether to draw how far training is.
        original: of a quantised model the one in full precision, which is what is cut; None where the model is that.
        folder: where the run keeps its state, and where it continues from; None keeps none.
        limits: what the export asks of sizes.
        scores: at hand, so that nothing is scored, in modes none and separate.
    """

    model: nn.Module
    graph: DependencyGraph
    spec: PruneSpec
    data: Dataset[Any] | None
    stage: Callable[[str], AbstractContextManager[Any]]
    measure: Callable[[nn.Module], None]
    progress: bool = True
    original: Original | None = None
    folder: SharedFolder | None = None
    limits: Limits | None = None
    scores: Mapping[str, torch.Tensor] | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that the targets select."""
        return tuple(g for target in resolve_targets(self.spec, self.graph) for g in target.groups)


@dataclass(frozen=True)
class Outcome:
    """A pruned model and how it came about.

    Attributes:
        model: physically smaller; with adapters still on only where ``export.merge_lora`` is off.
        plan: the units that are gone.
        scores: what they were chosen by; float32 of shape ``(size,)`` by group name.
        events: the removals of a joint run.
        log: the Trainer's log lines.
        notes: what the report should say besides.
    """

    model: nn.Module
    plan: PrunePlan
    scores: dict[str, torch.Tensor]
    events: tuple[PruneEvent, ...] = ()
    log: tuple[dict[str, float], ...] = ()
    notes: tuple[str, ...] = ()


def run_mode(job: Job) -> Outcome:
    """Does what ``spec.training.mode`` says. The same job on the same machine gives the same outcome."""
    set_seed(job.spec.seed)
    return {"none": one_shot, "separate": separate, "joint": joint}[job.spec.training.mode](job)


def one_shot(job: Job) -> Outcome:
    """Scores and removes, once or in rounds, without training.

    Of several processes each scores the same batches, and all of them go by what the main one has found. Scores at hand
    are taken instead.
    """
    if not job.spec.coupled:
        with job.stage("score"):
            return _cut(job, *choose_apart(job.model, job.graph, job.spec, _batches(job, 0), job.limits))
    if job.scores is not None:
        with job.stage("rank"):
            plan = ranking.plan(job.graph, job.spec, job.scores, limits=job.limits)
        return _cut(job, plan, dict(job.scores))
    with job.stage("score"), processes.together():
        found = choose(job.model, job.graph, job.spec, lambda index: _batches(job, index), job.limits)
    plan, scores = processes.from_main(lambda: found)
    return _cut(job, plan, scores)


def separate(job: Job) -> Outcome:
    """Removes everything at once, then tunes adapters on the smaller model."""
    pruned = _pruned_before(job) or one_shot(job)
    if job.folder is not None and job.folder.pruned() is None:
        job.folder.keep_pruned(pruned.plan, pruned.scores)
    model, graph = pruned.model, called_after(job.graph, pruned.plan)
    groups = [graph.by_name[group.name] for group in job.groups]
    if job.original is not None:
        with job.stage("quantise"):
            model = job.original.quantised(model, graph)
    set_seed(job.spec.seed)  # the adapters' first values, whether scores were computed or read
    with attached(model, graph, groups, job.spec.lora) as wrapped, job.stage("train"):
        log = _trained(job, wrapped, CompletingCallback(groups))
    if job.original is not None:
        with job.stage("reshape"):
            wrapped = job.original.adapted(wrapped, pruned.plan, job.groups, job.spec.lora)
    return replace(pruned, model=_merged(job, wrapped), log=tuple(log))


def joint(job: Job) -> Outcome:
    """Tunes adapters and removes units on schedule, as LoRAPrune does, at once or by masks until the end.

    The model without tuning, for the report, is the pruned one with the adapters off.
    """
    original = (job.original.held or job.original.source) if job.original is not None else None
    callback = PruneCallback(_sparing(job), job.graph, original=original, limits=job.limits)
    with attached(job.model, job.graph, job.groups, job.spec.lora) as wrapped:
        try:
            with job.stage("train"):
                log = _trained(job, wrapped, callback)
        except BaseException:
            callback.tell_what_is_gone()
            raise
        finally:
            callback.close()
        if job.original is None:
            with cast(Any, wrapped).disable_adapter(), masked(wrapped, callback.plan, job.graph):
                job.measure(wrapped)
            with job.stage("reshape"):
                reshape(wrapped, callback.plan, job.graph)
    if job.original is not None:
        with job.stage("reshape"):
            wrapped = job.original.adapted(wrapped, callback.plan, job.groups, job.spec.lora)
        with cast(Any, wrapped).disable_adapter():
            job.measure(wrapped)
    return Outcome(
        _merged(job, wrapped), callback.plan, callback.scores, callback.events, tuple(log), tuple(callback.notes)
    )


def _sparing(job: Job) -> PruneSpec:
    """The spec, but for a caller's own quantised base, which is given back as it came: under masks alone."""
    if job.original is None or job.original.owned:
        return job.spec
    training = job.spec.training.model_copy(update={"compact": "never"})
    return job.spec.model_copy(update={"training": training})


def _trained(job: Job, wrapped: nn.Module, callback: TrainerCallback) -> list[dict[str, float]]:
    """The log of a training that keeps its state in the run's folder, from the beginning or from where it was."""
    folder = job.folder
    resume = folder.start() if folder is not None else None
    if isinstance(callback, PruneCallback):
        callback.checkpoint = resume
    return train(
        wrapped,
        _data(job),
        job.spec,
        callbacks=[callback],
        progress=job.progress,
        folder=folder.path if folder is not None else None,
        resume=resume,
    )


def _pruned_before(job: Job) -> Outcome | None:
    """The model pruned as an earlier part of the run has decided, if it came so far."""
    kept = job.folder.pruned() if job.folder is not None else None
    if kept is None:
        return None
    return _cut(job, *kept)


def _cut(job: Job, plan: PrunePlan, scores: dict[str, torch.Tensor]) -> Outcome:
    with job.stage("reshape"):
        small = job.original.cut(job.model, plan) if job.original else reshape(job.model, plan, job.graph)
    job.measure(small)
    return Outcome(small, plan, scores)


def needs_data(spec: PruneSpec) -> bool:
    """Whether anything is trained, or judged by more than weights."""
    return spec.training.mode != "none" or bool(spec.criterion.build().signals - {Signal.WEIGHT})


def _merged(job: Job, wrapped: nn.Module) -> nn.Module:
    wrapped.eval()
    if not job.spec.export.merge_lora:
        return wrapped
    with job.stage("merge"):
        return merge(wrapped)


def _batches(job: Job, index: int) -> list[dict[str, torch.Tensor]]:
    """The calibration batches of ``micro_batch_size`` sequences of a round."""
    if job.data is None or not bool(job.spec.criterion.build().signals - {Signal.WEIGHT}):
        return []
    training, examples = job.spec.training, cast(Sequence[Any], job.data)
    size = training.micro_batch
    chosen = batches_of_round(training, len(examples) // size, index)
    return [collate([examples[i] for i in range(n * size, (n + 1) * size)]) for n in chosen]


def _data(job: Job) -> Dataset[Any]:
    if job.data is None:
        raise DataError(f"training.mode {job.spec.training.mode} needs text to train on, got none")
    return job.data
