"""Writing a model: plain where its config describes it, otherwise with what rebuilds it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from graphprune.checkpoint.adapters import merged, unmerged, write_adapters
from graphprune.checkpoint.constants import write_constants
from graphprune.checkpoint.folder import check_output_folder, written_whole
from graphprune.checkpoint.manifest import Manifest, StepFiles, library_versions, records
from graphprune.checkpoint.remote import write_remote
from graphprune.checkpoint.stand_in import stood_in
from graphprune.checkpoint.tiers import TIERS, Tier, best_tier, load_line
from graphprune.errors import CheckpointError
from graphprune.names import bare, resolve_owner, resolve_tensor
from graphprune.plan import PrunePlan
from graphprune.reshape.adapters import peft_model
from graphprune.reshape.config import described, quiet
from graphprune.reshape.history import History, config_from, history_of


class SavesItself(Protocol):
    """A report: anything that can write itself into a folder."""

    def save(self, folder: Path) -> Any:
        """Writes itself into ``folder``."""


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    plan: PrunePlan | None = None,
    report: SavesItself | None = None,
    merge_lora: bool = True,
    targets: Sequence[str] = TIERS,
    proof: Callable[[Path], object] | None = None,
) -> Path:
    """Writes ``model`` as a checkpoint folder: safetensors, config, tokenizer, plan and manifest.

    The folder appears whole or not at all. If the model's config describes it, the folder loads with stock
    ``from_pretrained`` (tier ``hf``), if need be as a model of another class that computes the same
    (:mod:`graphprune.reshape.siblings`); otherwise it carries a modelling file and loads with
    ``trust_remote_code=True`` (tier ``hf-remote-code``); where that is not possible :func:`graphprune.load` reads it
    (tier ``graphprune``). ``manifest.json`` says which, with the line of code. :func:`graphprune.load` reads all of
    them.

    Args:
        model: a transformers model, pruned or not, bare or wrapped with LoRA adapters.
        folder: a folder that does not exist yet, or is empty.
        tokenizer: saved along, if given.
        plan: the plan to write down where the model does not remember how it was pruned.
        report: saved along, if given.
        merge_lora: merge the adapters into a copy of the weights; ``model`` itself keeps them. Otherwise the
            unmerged weights are written, and the adapters into the sub-folder ``adapter``.
        targets: the tiers that are acceptable; the first one that the model can have is written.
        proof: called with the complete folder before it takes its name; if it raises, nothing is left.

    Returns:
        the folder.

    Raises:
        CheckpointError: if the folder is not empty or cannot be written, the model is none that transformers could load
            again, or can have none of ``targets``.
    """
    target = check_output_folder(folder)
    base: Any = bare(model)
    if not isinstance(base, PreTrainedModel):
        raise CheckpointError(f"only transformers models can be saved, got {type(base).__name__}")
    history = history_of(model)
    tier = best_tier(model, targets)
    if history.stock and history.stand_in is None and not described(base):
        raise CheckpointError(
            f"the config of this {type(base).__name__} does not describe its tensors, and it was not pruned by "
            "graphprune.reshape, so no loader could rebuild it. Prune it with graphprune.reshape."
        )
    _check_shapes(model, tier)
    with written_whole(target) as partial:
        constants = _write_model(model, partial, target, tier, history, merge_lora=merge_lora)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        steps = _write_steps(partial, history, plan)
        if report is not None:
            report.save(partial)
        Manifest(
            tier=tier.name,
            load=load_line(base, target, tier, adapter=peft_model(model) is not None and not merge_lora),
            architecture=(history.stand_in or history).architecture,
            base_name=history.base_name,
            base_config=(history.stand_in or history).base_config,
            steps=steps,
            constants=constants,
            why_not_hf=tier.why_not.get("hf", ""),
            why_not_remote=tier.why_not.get("hf-remote-code", ""),
            libraries=library_versions(),
            files=records(partial),
        ).write(partial)
        if proof is not None:
            proof(partial)
    return target


def _check_shapes(model: nn.Module, tier: Tier) -> None:
    """What the modelling file will build must have the sizes of the model as it is in memory."""
    for name, shape in tier.recipe.shapes.items() if tier.recipe is not None else ():
        found = tuple(resolve_tensor(model, name).shape)
        if found != shape:
            raise CheckpointError(
                f"'{name}': expected shape {shape}, which is left after all prunings of this model, got {found}. "
                "Was it changed by other means than graphprune.reshape?"
            )


def _write_model(
    model: nn.Module, folder: Path, target: Path, tier: Tier, history: History, *, merge_lora: bool
) -> str | None:
    """Writes weights, config, and what else it takes to build the model; the name of the file of cut constants.

    ``folder`` is where to write, ``target`` the name it will take.
    """
    base: Any = bare(model)
    if tier.name == "hf":
        with stood_in(base, history, folder):
            _write_weights(model, folder, target, merge_lora=merge_lora)
        return None
    constants = tier.recipe.constants if tier.recipe is not None else ()
    with _base_config(base, history), _in_weights(model, constants) if constants else nullcontext():
        _write_weights(model, folder, target, merge_lora=merge_lora)
    if tier.recipe is not None:
        write_remote(folder, tier.recipe, base.dtype, {name: resolve_tensor(model, name).dtype for name in constants})
        return None
    _write_base_config(folder, history, base.dtype)
    return write_constants(model, history, folder)


@contextmanager
def _in_weights(model: nn.Module, constants: Sequence[str]) -> Iterator[None]:
    """Lets buffers that no stock checkpoint has be written with the weights, each as a tensor of its own."""
    places = [resolve_owner(model, name) for name in constants]
    held = [owner._buffers[leaf] for owner, leaf in places]
    for owner, leaf in places:
        owner._non_persistent_buffers_set.discard(leaf)
        owner._buffers[leaf] = owner.get_buffer(leaf).clone()
    try:
        yield
    finally:
        for (owner, leaf), tensor in zip(places, held, strict=True):
            owner._non_persistent_buffers_set.add(leaf)
            owner._buffers[leaf] = tensor


def _write_weights(model: nn.Module, folder: Path, target: Path, *, merge_lora: bool) -> None:
    with quiet():
        base: Any = merged(model) if merge_lora else unmerged(model)
        base.save_pretrained(folder)
        if base is not bare(model) and not merge_lora:
            write_adapters(model, base, folder, str(target))


@contextmanager
def _base_config(base: Any, history: History) -> Iterator[None]:
    """Weights are written as they will be read: beside the config of the unpruned model.

    The live config is half adapted, so it may not pass the checks that come with saving it.
    """
    live = base.config
    base.config = config_from(type(base).config_class or type(live), history.base_config)
    try:
        yield
    finally:
        base.config = live


def _write_base_config(folder: Path, history: History, dtype: torch.dtype) -> None:
    """The config that the architecture is built from before it is cut; the live one may be half adapted."""
    config = {**history.base_config, "dtype": str(dtype).removeprefix("torch.")}
    config.setdefault("architectures", [history.architecture])
    if not config["architectures"]:
        config["architectures"] = [history.architecture]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_steps(folder: Path, history: History, plan: PrunePlan | None) -> tuple[StepFiles, ...]:
    steps = []
    for i, step in enumerate(history.steps):
        files = StepFiles(plan=f"plan{i or ''}.json", graph=f"graph{i or ''}.json")
        step.plan.save(folder / files.plan)
        (folder / files.graph).write_text(step.graph.model_dump_json() + "\n", encoding="utf-8")
        steps.append(files)
    if not steps and plan is not None:
        plan.save(folder / "plan.json")
    return tuple(steps)
