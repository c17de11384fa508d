"""Pruning inside any transformers Trainer: the state machine of :mod:`.pruner`, wired to its events."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from graphprune.declare import declare
from graphprune.engine.adapters import trace_without_adapters
from graphprune.engine.finite import check_gradients, nonfinite_gradients
from graphprune.engine.identity import Identity
from graphprune.engine.pruner import PruneEvent, Pruner
from graphprune.engine.state import EngineState
from graphprune.errors import CheckpointError, GraphPruneError
from graphprune.graph import DependencyGraph
from graphprune.masking import MaskSet
from graphprune.observe import Observer
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec
from graphprune.specfile import load_spec

log = logging.getLogger(__name__)


class PruneCallback(TrainerCallback):
    """Prunes by masks while a Trainer tunes: scores at every optimizer step, removes units on schedule.

    Put it into ``Trainer(callbacks=[...])``. After training, :attr:`plan` holds the units that are gone,
    exactly the target; ``gp.reshape(model, callback.plan)`` makes the model physically smaller. Criteria
    that read adapters need a model wrapped by PEFT; see :func:`graphprune.engine.adapters.attach`. Where the base is
    quantised by bitsandbytes, :func:`graphprune.engine.original.full_precision` makes the smaller model instead.

    Scores are taken where LoRAPrune takes them: once per optimizer step, on the accumulated gradients, after
    clipping and before the update, dropout active, inside the warm-up too. Of the spec, ``targets``,
    ``scope``, ``criterion`` and ``schedule`` are used; steps, batches and the optimizer are the Trainer's.

    Whenever the Trainer saves a checkpoint, what pruning needs to go on is added to it, and it is marked as whole.
    ``trainer.train(resume_from_checkpoint=gp.last_checkpoint(output_dir))`` continues there, to the same result: the
    masks are on before the first forward pass. Keep at least two checkpoints (``save_total_limit``): the Trainer
    removes old ones before the new one is whole.

    Args:
        spec: a spec, its file, recipe or dictionary.
        graph: the dependency graph of the bare model; traced at the beginning of training where it is None.
        checkpoint: the checkpoint that the Trainer resumes from, where it is not in its own ``output_dir``.

    Raises:
        SpecError: at the beginning of training, if the spec does not fit the model.
        CheckpointError: at the beginning of a training that is resumed from a checkpoint that is not whole, or does
            not belong to this spec and model; when a checkpoint cannot be written.
        NonFiniteError: during training, for scores or gradients that are NaN or infinite.
    """

    def __init__(
        self,
        spec: PruneSpec | Mapping[str, Any] | str | os.PathLike[str],
        graph: DependencyGraph | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.spec = load_spec(spec)
        self.graph = graph
        self.checkpoint = checkpoint
        self.pruner: Pruner | None = None
        self._observer: Observer | None = None
        self._masks: MaskSet | None = None
        self._watching = ExitStack()
        self._identity: Identity | None = None

    @property
    def plan(self) -> PrunePlan:
        """The units that are gone by now; after training, the target."""
        if self.pruner is None:
            raise GraphPruneError("PruneCallback.plan exists once training has begun; run trainer.train() first")
        return self.pruner.plan

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
        self._watching.close()
        if self._masks is not None:
            self._masks.detach()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()
        model: nn.Module = kwargs["model"]
        self.graph = declare(self.graph or trace_without_adapters(model), self.spec, model)
        self.pruner = Pruner(self.graph, self.spec, state.max_steps)
        self._identity = Identity.of_training(self.spec, state.max_steps, self.graph, model)
        groups = self.pruner.groups
        self._masks = MaskSet(model, self.graph, [g.name for g in groups]).attach()
        if state.global_step:
            self._resume(args, state.global_step, model)
        if self.pruner.done:
            return
        self._observer = self._watching.enter_context(
            Observer.for_criterion(
                model, self.graph, groups, self.pruner.criterion, backwards=args.gradient_accumulation_steps
            )
        )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        pruner, model, step = self._running, kwargs["model"], state.global_step + 1
        assert self._observer is not None
        scale = _unscale(kwargs["optimizer"])
        if scale is not None and (nonfinite_gradients(model) or self._observer.nonfinite()):
            log.info("step %d: overflow in half precision, so this step is skipped and not scored", step)
            self._observer.reset()
            return
        check_gradients(model, pruner.groups, step)
        if pruner.done:
            return
        self._observer.loss_scale = scale or 1.0
        pruner.score(step, self._observer)
        self._observer.reset()
        plan = pruner.advance(step, _last_loss(state))
        if plan is not None:
            self._apply(plan)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._identity is not None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes files of its own
        folder = _checkpoint_of(args, state.global_step)
        if args.should_save and folder.is_dir():  # a search for hyperparameters writes elsewhere
            EngineState.of(self._running, state.global_step, self._identity, kwargs["model"]).save(folder)

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
        saved = EngineState.load(folder)
        if saved.step != step:
            raise CheckpointError(
                f"the Trainer resumes at step {step}, but {folder} was written at step {saved.step}. "
                "Give PruneCallback(checkpoint=...) the folder that the Trainer resumes from."
            )
        saved.check(self._identity, model, folder)
        saved.restore(self._running)
        self._mask(saved.plan)
        gone = sum(len(units) for units in saved.plan.removed.values())
        log.info("continued after step %d, with %d units removed", step, gone)

    def _mask(self, plan: PrunePlan) -> None:
        assert self._masks is not None
        for name, units in plan.removed.items():
            self._masks.set(name, units)

    def _apply(self, plan: PrunePlan) -> None:
        self._mask(plan)
        log.info("pruned at %s", self._running.events[-1])
        if self._running.done:
            self._watching.close()  # no more scores are needed, so training need not pay for them


def _checkpoint_of(args: TrainingArguments, step: int) -> Path:
    """Where a Trainer keeps its checkpoint of ``step``."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _unscale(optimizer: Any) -> float | None:
    """Unscales the gradients of what is trained; the factor that the loss carried, None where there is no scaler.

    Scores must not carry the loss scale. Clipping has unscaled the gradients already, and a second time is refused.
    Overflow is part of the method there (fp16).
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return None
    with suppress(RuntimeError):
        scaler.unscale_(optimizer.optimizer)
    return float(scaler.get_scale())


def _last_loss(state: TrainerState) -> float | None:
    return next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
