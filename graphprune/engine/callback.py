"""Pruning inside any transformers Trainer: the state machine of :mod:`.pruner`, wired to its events."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from graphprune import processes
from graphprune.compiled import forget, launched_compiled
from graphprune.declare import declare
from graphprune.engine.adapters import check_adapters, trace_without_adapters
from graphprune.engine.compact import Compactor, begun, resume
from graphprune.engine.compacting import find_compactor, find_originals
from graphprune.engine.finite import check_gradients
from graphprune.engine.gradients import Gradients
from graphprune.engine.identity import Identity
from graphprune.engine.original import Source
from graphprune.engine.parallel import check_parallel
from graphprune.engine.present import Present
from graphprune.engine.pruner import PruneEvent, Pruner
from graphprune.engine.state import EngineState
from graphprune.engine.zero import BeforeSteps, engine_of
from graphprune.errors import (
    CheckpointError,
    DistributedError,
    GraphError,
    GraphPruneError,
    ReshapeError,
)
from graphprune.export.fit import fit
from graphprune.export.limits import Limits
from graphprune.graph import DependencyGraph
from graphprune.masking import MaskSet
from graphprune.observe import Observer
from graphprune.plan import PrunePlan
from graphprune.reshape.history import history_of
from graphprune.schema import PruneSpec
from graphprune.specfile import load_spec

log = logging.getLogger(__name__)


class PruneCallback(TrainerCallback):
    """Prunes while a Trainer tunes: scores at every optimizer step, removes units on schedule.

    Put it into ``Trainer(callbacks=[...])``. After training, :attr:`plan` holds the units that are gone,
    exactly the target, and ``gp.reshape(model, callback.plan)`` removes what is still there of them and makes the
    config follow. Criteria that read adapters need a model wrapped by PEFT; see
    :func:`graphprune.engine.adapters.attach`. Where the base is quantised by bitsandbytes,
    :func:`graphprune.engine.original.full_precision` makes the smaller model instead.

    Where it is safe, units are cut out of the model and the optimizer's state as soon as they go
    (``training.compact``), so that every later step is cheaper; elsewhere they are silenced by masks until the end, and
    :attr:`notes` say why.

    Scores are taken where LoRAPrune takes them: once per optimizer step, on the accumulated gradients, after
    clipping and before the update, dropout active, inside the warm-up too. Of the spec, ``targets``,
    ``scope``, ``criterion``, ``schedule``, ``export`` and ``training.compact`` are used; steps, batches and the
    optimizer are the Trainer's.

    Whenever the Trainer saves a checkpoint, what pruning needs to go on is added to it, and it is marked as whole.
    ``PruneCallback(spec, checkpoint=last)`` and ``trainer.train(resume_from_checkpoint=last)``, where ``last`` is
    ``gp.last_checkpoint(output_dir)``, continue there to the same result: the model is cut before it loads smaller
    weights, and masks are on before the first forward pass. Keep at least two checkpoints (``save_total_limit``): the
    Trainer removes old ones before the new one is whole.

    A Trainer with ``torch_compile`` compiles anew after every prune event: compiled code would not see new masks.

    In a training of several processes (DDP, FSDP2, DeepSpeed), units are judged by the batches of all of them: scores
    and plans are those of one process with the same batches. With ``mean_of: gradient``, ``taylor`` averages each
    weight gradient over processes as it comes there, and keeps none where a step has no gradient accumulation. Under
    FSDP2 and DeepSpeed units are masked, never cut.

    Args:
        spec: a spec, its file, recipe or dictionary.
        graph: the dependency graph of the bare model; traced at the beginning of training where it is None.
        checkpoint: the checkpoint that the Trainer is going to resume from; None to begin anew. Under masks it may be
            left out where it is in the Trainer's own ``output_dir``.
        original: of a base in 4 bits that is cut while it is trained (``compact: always``), the full-precision
            weights: a folder, a Hub id, or the model; where it was loaded from by default.
        limits: what the spec's ``export`` asks of sizes; found out at the beginning of training where it is None.

    Raises:
        SpecError: at the beginning of training, if the spec does not fit the model.
        ReshapeError: then, if something to be pruned carries an adapter that is no plain LoRA, such as DoRA.
        CriterionError: then, if the criterion reads adapters and none is where it prunes.
        CheckpointError: at the beginning of a training that is resumed from a checkpoint that is not whole, or does
            not belong to this spec and model; when a checkpoint cannot be written.
        DistributedError: at the beginning, where several devices are used in a way that pruning cannot follow
            (DataParallel, FSDP 1, tensor parallelism); during training, if processes disagree on what goes.
        NonFiniteError: during training, for scores or gradients that are NaN or infinite.
    """

    def __init__(
        self,
        spec: PruneSpec | Mapping[str, Any] | str | os.PathLike[str],
        graph: DependencyGraph | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        original: str | os.PathLike[str] | Source | nn.Module | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.spec = load_spec(spec)
        self._limits = limits
        self.graph = graph
        self.checkpoint = checkpoint
        self.original = original
        self.pruner: Pruner | None = None
        self._observer: Observer | None = None
        self.notes: list[str] = []
        self._masks: MaskSet | None = None
        self._compactor: Compactor | None = None
        self._present: Present | None = None
        self._watching = ExitStack()
        self._stepping: BeforeSteps | None = None
        self._identity: Identity | None = None
        self._uncut: Identity | None = None
        self._backwards = 1
        self._compiled = False
        self._read: tuple[Path, EngineState] | None = None

    @property
    def plan(self) -> PrunePlan:
        """The units that are gone by now; after training, the target."""
        if self.pruner is None:
            raise GraphPruneError("PruneCallback.plan exists once training has begun; run trainer.train() first")
        return self.pruner.plan

    @property
    def compacted(self) -> PrunePlan:
        """The units that are cut out of the model by now, in terms of :attr:`graph`; the others are masked."""
        if self._present is None:
            raise GraphPruneError("PruneCallback.compacted exists once training has begun; run trainer.train() first")
        return self._present.gone

    @property
    def events(self) -> tuple[PruneEvent, ...]:
        """What was removed when."""
        return () if self.pruner is None else tuple(self.pruner.events)

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The averaged scores by group name: float32 of shape ``(size,)``, on the CPU."""
        return {} if self.pruner is None else {n: v.cpu() for n, v in self.pruner.average.values.items()}

    def close(self) -> None:
        """Takes masks and observers off the model; for a training that was broken off."""
        self._unwatch()
        if self._stepping is not None:
            self._stepping.close()
            self._stepping = None

    def tell_what_is_gone(self) -> None:
        """Warns, for a training that was broken off, if the model has lost units; they cannot come back."""
        if self._present is not None and self._present.gone.removed:
            log.warning(
                "training was broken off after the model had become smaller: %s are cut out of it. "
                "Load it again to begin anew.",
                self._present.gone,
            )

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint to resume from may have smaller weights; the model is cut before it loads them."""
        if self.checkpoint is None:
            return
        self._read = None
        saved, model = self._saved_in(Path(self.checkpoint)), kwargs["model"]
        if saved.compacted is not None:
            self.graph = self._graph_of(model)
            self._uncut = Identity.of_training(self.spec, 0, self.graph, model)
            cut = [self.graph.by_name[name] for name in saved.compacted.removed]
            originals = find_originals(model, cut, self.spec.training.compact, self.original)
            resume(model, self.graph, saved.compacted, originals)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()
        self._compiled = args.torch_compile or launched_compiled()
        model: nn.Module = kwargs["model"]
        check_parallel(args, model)
        self.graph = self._graph_of(model)
        fitted = fit(self.spec, self.graph, model) if self._limits is None else None
        spec, limits = (self.spec, self._limits) if fitted is None else (fitted.spec, fitted.limits)
        self.pruner = Pruner(self.graph, spec, state.max_steps, limits)
        # Of a model that was cut to a checkpoint, what it was before; once, as a callback may see several trainings.
        identity, self._uncut = self._uncut or Identity.of_training(self.spec, 0, self.graph, model), None
        self._identity = identity.model_copy(update={"steps": state.max_steps})
        if not processes.same(self._identity.model_dump_json()):
            raise DistributedError(
                f"the {processes.count()} processes of this training differ in the spec, the model, its frozen weights "
                "or the versions of libraries; expected the same in each. Load the same checkpoint everywhere."
            )
        self._backwards = args.gradient_accumulation_steps * processes.count()
        self._present = Present(self.graph, begun(model, self.graph))
        if state.global_step:
            self._resume(args, state.global_step, model)
        else:
            self.pruner.plan = self._present.gone
        groups = self._present.groups(self.pruner.groups)
        check_adapters(model, groups, self.pruner.criterion)
        self.notes = []
        if fitted is not None:
            for note in [*fitted.notes, *([f"the result: {fitted}"] if fitted.why_not else [])]:
                self._say(note)
        wanted, optimizer = self.spec.training.compact, kwargs.get("optimizer")
        originals = find_originals(model, groups, wanted, self.original)
        self._compactor = find_compactor(
            model, self.graph, groups, wanted, args=args, optimizer=optimizer, originals=originals, say=self._say
        )
        engine = engine_of(model, optimizer)
        if engine is not None:
            self._stepping = BeforeSteps(engine, lambda gradients: self._score(state, model, gradients))
            self._stepping.open()
        self._watch(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._stepping:  # DeepSpeed has made the step by now, and the units are scored
            self._score(state, kwargs["model"], Gradients(kwargs["optimizer"]))

    def _score(self, state: TrainerState, model: nn.Module, gradients: Gradients) -> None:
        """Scores the batches of one optimizer step, before it is made, and prunes if that is due."""
        pruner, present, step = self._running, self._present, state.global_step + 1
        assert present is not None
        scale, broken = gradients.loss_scale, gradients.nonfinite(model)
        seen = None if pruner.done else self._observer
        if seen is not None:
            seen.share()
            seen.gradient_of = gradients.of
        if scale is not None and self._overflown(broken, seen):
            log.info("step %d: overflow in half precision, so this step is skipped and not scored", step)
            if seen is not None:
                seen.reset()
            return
        check_gradients(broken, present.groups(pruner.groups), step)
        if seen is None:
            return
        seen.loss_scale = scale or 1.0
        pruner.score(step, seen, present)
        seen.reset()
        plan = pruner.advance(step, _last_loss(state))
        if plan is not None:
            self._apply(plan, model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._identity is not None
        processes.wait()  # every process writes files of its own
        folder = _checkpoint_of(args, state.global_step)
        if args.should_save and folder.is_dir():  # a search for hyperparameters writes elsewhere
            cut = self.compacted if self.compacted.removed else None
            model = kwargs["model"]
            EngineState.of(self._running, state.global_step, self._identity, model, cut).save(folder, model)
        processes.wait()  # none goes on, or ends, before the checkpoint is whole

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._running.done:
            log.warning("training ended at step %d, before the schedule's last event", state.global_step)
        self._running.finish(state.global_step)
        self.close()

    @property
    def _running(self) -> Pruner:
        assert self.pruner is not None, "on_train_begin has not been called"
        return self.pruner

    def _resume(self, args: TrainingArguments, step: int, model: nn.Module) -> None:
        """Goes on from the checkpoint whose weights the Trainer has just loaded."""
        assert self._identity is not None
        folder = Path(self.checkpoint) if self.checkpoint is not None else _checkpoint_of(args, step)
        saved, self._read = self._saved_in(folder), None  # it may be another one when this trains again
        if saved.step != step:
            raise CheckpointError(
                f"the Trainer resumes at step {step}, but {folder} was written at step {saved.step}. "
                "Give PruneCallback(checkpoint=...) the folder that the Trainer resumes from."
            )
        if saved.compacted is not None and saved.compacted.removed != self.compacted.removed:
            raise CheckpointError(
                f"{folder} was written when units had been cut out of the model, and this model still has them. Give "
                "PruneCallback(checkpoint=...) the checkpoint, and it cuts the model before weights are loaded."
            )
        saved.check(self._identity, model, folder)
        saved.restore(self._running)
        self._running.check_agreed()
        gone = sum(len(units) for units in saved.plan.removed.values())
        log.info("continued after step %d, with %d units removed", step, gone)

    def _saved_in(self, folder: Path) -> EngineState:
        """The state in a checkpoint, which is hashed only once from the Trainer's set-up to its beginning."""
        if self._read is None or self._read[0] != folder:
            self._read = folder, EngineState.load(folder)
        return self._read[1]

    @staticmethod
    def _overflown(broken: list[str], observer: Observer | None) -> bool:
        # Both are asked, whatever the first says: what is divided among processes is gathered on the way.
        seen = None if observer is None else observer.nonfinite()
        return processes.any_of(bool(broken) or seen is not None)

    def _graph_of(self, model: nn.Module) -> DependencyGraph:
        """The graph that the run speaks of: of the model before an unfinished pruning, if there is one."""
        underway = history_of(model).underway
        if underway is not None and self.graph is None:
            return underway.step.graph
        return declare(self.graph or trace_without_adapters(model), self.spec, model)

    def _hooks_changed(self) -> None:
        if self._compiled:
            forget()

    def _say(self, note: str) -> None:
        log.info(note)
        self.notes.append(note)

    def _apply(self, plan: PrunePlan, model: nn.Module) -> None:
        log.info("pruned at %s", self._running.events[-1])
        if self._compactor is not None:
            self._unwatch()  # hooks would be left on tensors that go
            try:
                self._present = self._compactor.cut(plan)
            except (ReshapeError, GraphError) as error:
                if self.spec.training.compact == "always":
                    raise
                self._compactor = None
                self._say(f"pruned by masks from step {self._running.events[-1].step} on, because {error}")
        self._watch(model)

    def _unwatch(self) -> None:
        self._watching.close()
        if self._masks is not None:
            self._masks.detach()
        self._hooks_changed()

    def _watch(self, model: nn.Module) -> None:
        """Puts the masks of what is not cut out on, and observers while scores are needed."""
        pruner, present = self._running, self._present
        assert present is not None
        self._unwatch()
        groups = present.groups(pruner.groups)
        left = present.left(pruner.plan)
        self._masks = MaskSet(model, present.graph, [g.name for g in groups])
        for name, units in left.removed.items():
            self._masks.set(name, units)
        self._masks.attach()
        if not pruner.done:  # else training need not pay for scores
            observer = Observer.for_criterion(
                model, present.graph, groups, pruner.criterion, self._backwards, meeting=not self._compiled
            )
            self._observer = self._watching.enter_context(observer)
        self._hooks_changed()


def _checkpoint_of(args: TrainingArguments, step: int) -> Path:
    """Where a Trainer keeps its checkpoint of ``step``."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _last_loss(state: TrainerState) -> float | None:
    return next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
