"""Writing a model: plain where its config describes it, otherwise with what rebuilds it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from graphprune.checkpoint.constants import write_constants
from graphprune.checkpoint.folder import check_output_folder, written_whole
from graphprune.checkpoint.manifest import FileRecord, Manifest, StepFiles, library_versions, records
from graphprune.checkpoint.remote import write_remote
from graphprune.checkpoint.stand_in import stood_in
from graphprune.checkpoint.tiers import TIERS, Tier, best_tier, load_line
from graphprune.checkpoint.weights import Weights
from graphprune.errors import CheckpointError
from graphprune.names import bare, resolve_tensor
from graphprune.plan import PrunePlan
from graphprune.reshape.adapters import peft_model
from graphprune.reshape.config import described
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
    max_shard_size: int | str = "50GB",
    progress: Callable[[int, int], None] | None = None,
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
        report: saved along, if given; once more when ``proof`` is done.
        merge_lora: merge the adapters into a copy of the weights; ``model`` itself keeps them. Otherwise the
            unmerged weights are written, and the adapters into the sub-folder ``adapter``.
        targets: the tiers that are acceptable; the first one that the model can have is written.
        proof: called with the complete folder before it takes its name; if it raises, nothing is left.
        max_shard_size: of a weight file, unless a single tensor is larger; bytes, or a text such as ``5GB``.
        progress: of a model whose weights are still in their files (:func:`graphprune.apply`), told how many bytes of
            how many are written.

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
    written_as = history.stand_in if tier.name == "hf" and history.stand_in is not None else history
    with written_whole(target) as partial:
        weights = Weights(model, target, merge_lora, max_shard_size, progress)
        constants, written = _write_model(weights, partial, tier, history)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        steps = _write_steps(partial, history, plan)
        others = set(partial.rglob("*"))
        if report is not None:
            report.save(partial)
        manifest = Manifest(
            tier=tier.name,
            load=load_line(base, target, tier, adapter=peft_model(model) is not None and not merge_lora),
            architecture=written_as.architecture,
            base_name=history.base_name,
            base_config=written_as.base_config,
            steps=steps,
            constants=constants,
            why_not_hf=tier.why_not.get("hf", ""),
            why_not_remote=tier.why_not.get("hf-remote-code", ""),
            libraries=library_versions(),
            files=records(partial, written),
        )
        manifest.write(partial)
        if proof is not None:
            proof(partial)
            if report is not None:  # it can say what came of the proof
                report.save(partial)
                same = {name: record for name, record in manifest.files.items() if partial / name in others}
                manifest.model_copy(update={"files": records(partial, same)}).write(partial)
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
    weights: Weights, folder: Path, tier: Tier, history: History
) -> tuple[str | None, dict[str, FileRecord]]:
    """Writes weights, config, and what else it takes to build the model.

    Returns:
        the name of the file of cut constants, and the records of files that were hashed on the way.
    """
    model, base = weights.model, cast(Any, bare(weights.model))
    if tier.name == "hf":
        with stood_in(base, history, folder):
            return None, weights.write(folder)
    constants = tier.recipe.constants if tier.recipe is not None else ()
    with _base_config(base, history):
        written = weights.write(folder, constants)
    if tier.recipe is not None:
        kinds = {name: resolve_tensor(model, name).dtype for name in constants}
        write_remote(folder, tier.recipe, base.dtype, kinds)
        return None, written
    _write_base_config(folder, history, base.dtype)
    return write_constants(model, history, folder), written


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
