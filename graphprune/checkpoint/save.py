"""Writing a model: plain where its config describes it, otherwise with the plan that rebuilds it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from graphprune.checkpoint.constants import write_constants
from graphprune.checkpoint.folder import check_output_folder, written_whole
from graphprune.checkpoint.manifest import FileRecord, Manifest, StepFiles, library_versions, records
from graphprune.errors import CheckpointError
from graphprune.names import bare
from graphprune.plan import PrunePlan
from graphprune.reshape.config import described, quiet
from graphprune.reshape.history import History, config_from, history_of
from graphprune.stream.tensor import is_deferred
from graphprune.tasks import loader_name


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
    proof: Callable[[Path], object] | None = None,
    max_shard_size: int | str = "50GB",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes ``model`` as a checkpoint folder: safetensors, config, tokenizer, plan and manifest.

    The folder appears whole or not at all. If the model's config describes it, the folder loads with stock
    ``from_pretrained`` (tier ``hf``); otherwise :func:`graphprune.load` reads it (tier ``graphprune``).
    ``manifest.json`` says which, with the line of code.

    Args:
        model: a transformers model, pruned or not, bare or wrapped with LoRA adapters.
        folder: a folder that does not exist yet, or is empty.
        tokenizer: saved along, if given.
        plan: the plan to write down where the model does not remember how it was pruned.
        report: saved along, if given.
        merge_lora: merge the adapters into a copy of the weights; ``model`` itself keeps them. Otherwise the
            unmerged weights are written, and the adapters into the sub-folder ``adapter``.
        proof: called with the complete folder before it takes its name; if it raises, nothing is left.
        max_shard_size: of a weight file, unless a single tensor is larger; bytes, or a text such as ``5GB``.
        progress: of a model whose weights are still in their files (:func:`graphprune.apply`), told how many bytes of
            how many are written.

    Returns:
        the folder.

    Raises:
        CheckpointError: if the folder is not empty or cannot be written, or the model is none that transformers
            could load again.
    """
    target = check_output_folder(folder)
    base: Any = bare(model)
    if not isinstance(base, PreTrainedModel):
        raise CheckpointError(f"only transformers models can be saved, got {type(base).__name__}")
    history = history_of(model)
    tier = "hf" if history.stock else "graphprune"
    if history.stock and not described(base):
        raise CheckpointError(
            f"the config of this {type(base).__name__} does not describe its tensors, and it was not pruned by "
            "graphprune.reshape, so no loader could rebuild it. Prune it with graphprune.reshape."
        )
    with written_whole(target) as partial:
        if tier == "graphprune":
            with _base_config(base, history):
                written = _write_weights(model, partial, merge_lora=merge_lora, size=max_shard_size, progress=progress)
            _write_base_config(partial, history, base.dtype)
        else:
            written = _write_weights(model, partial, merge_lora=merge_lora, size=max_shard_size, progress=progress)
        constants = write_constants(model, history, partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        steps = _write_steps(partial, history, plan)
        if report is not None:
            report.save(partial)
        Manifest(
            tier=tier,
            load=load_line(base, target, tier, adapter=hasattr(model, "merge_and_unload") and not merge_lora),
            architecture=history.architecture,
            base_name=history.base_name,
            base_config=history.base_config,
            steps=steps,
            constants=constants,
            why_not_hf=history.why_not if tier == "graphprune" else "",
            libraries=library_versions(),
            files=records(partial, written),
        ).write(partial)
        if proof is not None:
            proof(partial)
    return target


def load_line(model: nn.Module, folder: Path, tier: str, *, adapter: bool = False) -> str:
    """The line of Python that loads ``model`` from a folder of the given tier, with adapters beside its weights."""
    base: Any = bare(model)
    loader = loader_name(type(base).__name__, base.config.model_type)
    call = f"transformers.{loader}.from_pretrained" if tier == "hf" else "graphprune.load"
    loaded = f"{call}({str(folder)!r})"
    return (
        f"model = peft.PeftModel.from_pretrained({loaded}, {str(folder / 'adapter')!r})"
        if adapter
        else f"model = {loaded}"
    )


def _write_weights(
    model: Any, folder: Path, *, merge_lora: bool, size: int | str, progress: Callable[[int, int], None] | None
) -> dict[str, FileRecord]:
    """Writes them; gives the records of files that were hashed on the way."""
    with quiet():
        if not hasattr(model, "merge_and_unload"):
            if is_deferred(model):
                from graphprune.stream.write import write_deferred  # which writes records of this package's manifest

                return write_deferred(bare(model), folder, max_shard_size=size, progress=progress)
            bare(model).save_pretrained(folder, max_shard_size=size)  # type: ignore[operator]
            return {}
        # On a copy: merging changes the weights for good, and unmerging rounds.
        twin = copy.deepcopy(model)
        if merge_lora:
            twin.merge_and_unload().save_pretrained(folder, max_shard_size=size)
        else:
            twin.unload().save_pretrained(folder, max_shard_size=size)
            model.save_pretrained(folder / "adapter")
    return {}


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
