"""A plan applied to a checkpoint, tensor by tensor: the model is never in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from graphprune.checkpoint.folder import check_output_folder, clear_partial
from graphprune.checkpoint.save import save
from graphprune.checkpoint.source import check_weights, load_model, weight_files
from graphprune.checkpoint.tiers import TIERS
from graphprune.declare import trace_with
from graphprune.errors import CheckpointError, StreamError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.stream.adapter import merge_adapter
from graphprune.stream.copies import SideFiles
from graphprune.stream.fetch import fetched
from graphprune.stream.opening import open_deferred, structure_of
from graphprune.stream.proof import Prove, bytes_of, prove_written
from graphprune.stream.write import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Applied:
    """What :func:`apply` did.

    Attributes:
        folder: where it wrote.
        before: parameters of the model as it came.
        after: parameters of what was written.
        proof: what a fresh process made of the folder, in words.
    """

    folder: Path
    before: int
    after: int
    proof: str


def apply(
    model: str | os.PathLike[str],
    plan: PrunePlan | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype = "auto",
    task: str | None = None,
    trust_remote_code: bool = False,
    targets: Sequence[str] = TIERS,
    max_shard_size: int | str | None = None,
    prove: Prove = "auto",
    progress: Progress | None = None,
) -> Applied:
    """Removes from a checkpoint what ``plan`` names, and writes the smaller one, without loading the model.

    The folder has the tensors, byte for byte, of :func:`graphprune.reshape` and :func:`graphprune.save` on the loaded
    model, its tokenizer and processor files as they are, and the same config, plan and manifest. Memory is needed for
    about the largest tensor. A model that can only be opened with its weights is loaded whole, which is logged.

    Args:
        model: a local folder of safetensors, one written by :func:`graphprune.save` included, or a Hub id.
        plan: the units to remove, or the file of a plan.
        folder: a folder that does not exist yet, or is empty.
        adapter: the folder of a PEFT LoRA adapter, which is merged into the weights before they are cut.
        dtype: of the weights; as they are stored by default.
        task: what the model is for (:data:`graphprune.tasks.TASKS`); by default its config says so.
        trust_remote_code: run modelling code that comes with the checkpoint.
        targets: the tiers that are acceptable; the first one that the result can have is written.
        max_shard_size: of a weight file; by default that of the source, where it has several.
        prove: before the folder takes its name, let a fresh process load it as its tier promises. ``True`` loads the
            original, cuts it in memory, and compares logits and a few greedy tokens. By default that is done where
            it takes no more than half of the free memory; otherwise the fresh process places every tensor, by name
            and shape, one after the other. ``False`` proves nothing.
        progress: is told how many bytes of how many are written.

    Raises:
        PlanError: if the plan was made for another model.
        CheckpointError: if the checkpoint or the adapter is damaged, pickled, or does not fit; if the folder is not
            empty, or there is no room; if the result can have none of ``targets``, or fails its proof. Nothing is left
            of the folder then.
        TraceError: with ``prove=True``, if the inputs of the model cannot be told.
    """
    target = check_output_folder(folder)
    wanted = plan if isinstance(plan, PrunePlan) else PrunePlan.load(plan)
    clear_partial(target)
    source = fetched(model, trust_remote_code=trust_remote_code)
    check_weights(source)
    sides = SideFiles(source)
    size = _shard_size(source) if max_shard_size is None else max_shard_size

    def load_whole() -> PreTrainedModel:
        loaded, _ = load_model(source, dtype=dtype, task=task, trust_remote_code=trust_remote_code)
        return loaded if adapter is None else merge_adapter(loaded, adapter)

    def cut(whole: PreTrainedModel, hollow: nn.Module) -> Applied:
        graph = trace_with(hollow, wanted.declared, source="plan")
        wanted.check(graph)
        before, original = whole.num_parameters(), bytes_of(whole)
        small = reshape(whole, wanted, graph)
        said = ""

        def proof(written: Path) -> None:
            nonlocal said
            try:
                said = prove_written(
                    written, small, lambda: reshape(load_whole(), wanted, graph), original=original, prove=prove
                )
            except CheckpointError as error:
                raise CheckpointError(f"{error}".replace(f"{written}", f"{target}")) from None

        save(small, target, tokenizer=sides, targets=targets, max_shard_size=size, progress=progress, proof=proof)
        return Applied(target, before, small.num_parameters(), said)

    try:
        opened = open_deferred(source, name=str(model), dtype=dtype, task=task, trust_remote_code=trust_remote_code)
        hollow = structure_of(opened)
        if adapter is not None:
            opened = merge_adapter(opened, adapter)
        return cut(opened, hollow)
    except StreamError as error:
        log.warning("%s is loaded whole, because it cannot be streamed: %s", model, error)
    loaded = load_whole()
    return cut(loaded, loaded)


def _shard_size(source: Path) -> int | str:
    """The size of the largest of several weight files; of one alone, transformers' limit."""
    files = weight_files(source)
    return max((source / file).stat().st_size for file in files) if len(files) > 1 else "50GB"
