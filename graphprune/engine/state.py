"""What the engine knows in the middle of a run, beside the Trainer's own files in the Trainer's own checkpoints.

A Trainer saves weights, optimizer, learning rate, random number generators and its place in the data. What pruning
adds is here: averaged scores, the plan so far, what was removed when, and whose run this is. Scores are safetensors,
everything else is JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from graphprune.divided import is_divided
from graphprune.engine.identity import Identity, tuned_weights
from graphprune.engine.marks import fault, mark
from graphprune.engine.pruner import PruneEvent, Pruner
from graphprune.errors import CheckpointError
from graphprune.files import write_whole
from graphprune.plan import PrunePlan

log = logging.getLogger(__name__)

STATE = "graphprune_state.json"
AVERAGES = "graphprune_averages.safetensors"
WEIGHTS = "graphprune_weights.safetensors"


class EngineState(BaseModel):
    """The engine's part of a checkpoint.

    Attributes:
        step: optimizer steps done.
        count: how many of them were scored.
        plan: the units that are gone, in terms of the graph as it was traced.
        events: what was removed when.
        due: the steps of the prune events that are still to come.
        compacted: the part of ``plan`` that the model's tensors no longer have, where a run makes its model smaller
            on the way. The checkpoint then holds smaller tensors, and a model must be cut to this plan before a Trainer
            is built around it. None for a run that masks.
        identity: what the checkpoint belongs to.
        weights: :func:`graphprune.engine.identity.tuned_weights` of the model.
        averages: the averaged scores by group name: float32 of shape ``(size,)``. Kept in a file of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    format: Literal[1] = 1
    step: int
    count: int
    plan: PrunePlan
    events: tuple[PruneEvent, ...] = ()
    due: tuple[int, ...] = ()
    compacted: PrunePlan | None = None
    identity: Identity
    weights: str
    averages: dict[str, torch.Tensor] = {}

    @classmethod
    def of(
        cls, pruner: Pruner, step: int, identity: Identity, model: nn.Module, compacted: PrunePlan | None = None
    ) -> EngineState:
        """What ``pruner`` knows after ``step`` optimizer steps of ``model``."""
        weights = tuned_weights(model)
        return cls(step=step, identity=identity, weights=weights, compacted=compacted, **pruner.state_dict())

    def restore(self, pruner: Pruner) -> None:
        """Lets ``pruner`` go on from here; it must be of the run that this belongs to (:meth:`check`)."""
        pruner.load_state_dict({name: getattr(self, name) for name in ("averages", "count", "plan", "events", "due")})

    def save(self, checkpoint: Path, model: nn.Module | None = None) -> None:
        """Writes the state into a checkpoint that the Trainer has finished with, and marks that as whole.

        Args:
            checkpoint: the Trainer's folder.
            model: whose trained weights are added as far as the Trainer has stored them under other names.

        Raises:
            CheckpointError: if it cannot be written.
        """
        try:
            renamed = {} if model is None else _renamed_weights(model, checkpoint)
            if renamed:
                save_file(renamed, checkpoint / WEIGHTS)
            tensors = {name: value.contiguous() for name, value in self.averages.items()}
            save_file(tensors, checkpoint / AVERAGES)
            write_whole(checkpoint / STATE, self.model_dump_json(indent=1, exclude={"averages"}) + "\n")
            mark(checkpoint)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the checkpoint {checkpoint} cannot be written: {error}") from error

    @classmethod
    def load(cls, checkpoint: Path) -> EngineState:
        """The state in a whole checkpoint.

        Raises:
            CheckpointError: if the checkpoint is half-written or damaged, or has no state of this engine.
        """
        problem = fault(checkpoint)
        if problem is not None:
            raise CheckpointError(
                f"{checkpoint} is no checkpoint to continue from: {problem}. Choose an earlier one; "
                "graphprune.last_checkpoint(output_dir) finds the latest that is whole."
            )
        try:
            found: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            return cls.model_validate({**found, "averages": load_file(checkpoint / AVERAGES)})
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint} holds no state of graphprune's engine that this version reads: {error}"
            ) from None

    def check(self, now: Identity, model: nn.Module, checkpoint: Path) -> None:
        """Refuses to continue what this checkpoint does not belong to; loads weights that the Trainer has not.

        Args:
            now: the identity of the run that wants to continue.
            model: with the weights of the checkpoint.
            checkpoint: where this was read, for messages.

        Raises:
            CheckpointError: naming every difference.
        """
        then = self.identity
        if self.compacted is not None and then.shapes != now.shapes:
            # The model has been cut to this plan already, and whoever cut it knows what it was before.
            then = then.model_copy(update=now.model_dump(include={"model", "shapes", "weights"}))
        check_identity(then, now, f"the checkpoint {checkpoint}")
        if tuned_weights(model) != self.weights:
            _load_weights(model, checkpoint)
        if tuned_weights(model) != self.weights:
            raise CheckpointError(
                f"the model does not have the trained weights of {checkpoint}: what loaded them has left some out, or "
                "they were changed since. Train adapters, whose checkpoints every Trainer can load, or begin anew."
            )


def _renamed_weights(model: nn.Module, checkpoint: Path) -> dict[str, torch.Tensor]:
    """Trained weights that ``checkpoint`` has under other names, or not at all.

    Transformers stores some models in the layout in which they were first published. A Trainer that loads such a
    checkpoint leaves these weights out with a warning.
    """
    if not isinstance(model, PreTrainedModel):  # adapters are stored by PEFT, and loaded by it
        return {}
    stored: set[str] = set()
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            stored.update(opened.keys())
    # What is divided among processes is stored by what divides it.
    named = ((name, p) for name, p in model.named_parameters() if not is_divided(p))
    trained = ((name, p.detach()) for name, p in named if p.requires_grad)
    return {name: weight.contiguous() for name, weight in trained if name not in stored}


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    if (checkpoint / WEIGHTS).is_file():
        model.load_state_dict(load_file(checkpoint / WEIGHTS), strict=False)


def check_identity(
    then: Identity, now: Identity, what: str, allowed: Callable[[list[str]], list[str]] = lambda problems: problems
) -> None:
    """Refuses to continue ``what`` with another spec, graph, model or data; other versions of libraries are said.

    ``allowed`` takes out of the differences those that are none.

    Raises:
        CheckpointError: naming every difference, what was expected and what was got.
    """
    problems = allowed(then.differences(now))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(
            f"{what} belongs to another run:\n{listed}\n"
            "Continue it with what it was begun with, or start anew in another place."
        )
    changed = then.other_versions(now)
    if changed:
        log.warning("%s was begun with other versions, so results may differ in rounding: %s", what, changed)
