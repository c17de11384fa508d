"""What is proved about a checkpoint that was cut on the way: as much as there is memory for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import nn

from graphprune.checkpoint.verify import Answer, verify_folder, verify_places
from graphprune.errors import CheckpointError, GraphPruneError
from graphprune.names import bare
from graphprune.sample import sample_inputs
from graphprune.stream.memory import available_memory
from graphprune.stream.tensor import is_deferred

Prove = bool | Literal["auto"]
"""Whether a folder is proved: by what it computes (true), not at all (false), or as far as memory allows."""


def prove_written(
    written: Path, small: nn.Module, cut_in_memory: Callable[[], nn.Module], *, original: int, prove: Prove
) -> str:
    """Proves a folder, and says how: by logits and text of a fresh process, or by its names and shapes alone.

    Args:
        written: the folder.
        small: the model that was written; its weights may be deferred.
        cut_in_memory: loads the original and cuts it, for comparison; not called where ``small`` has its weights.
        original: bytes of the original's weights.
        prove: ``auto`` compares what is computed where that takes no more than half of the memory that there is.

    Raises:
        CheckpointError: if the folder does not load in a fresh process, or computes something else.
        TraceError: with ``prove=True``, if the inputs of the model cannot be told.
    """
    if prove is False:
        return "not proved: nothing has loaded the folder"
    reason = "" if prove is True else _too_large(small, original)
    if not reason:
        model = small if not is_deferred(small) else cut_in_memory()
        try:
            answer = _answer(model)
        except GraphPruneError as error:
            if prove is True:
                raise
            reason = f"{error}"
        else:
            del model  # the fresh process needs the room
            distance = verify_folder(written, answer.inputs, answer.logits, answer.text)
            told = answer.told(distance)
            return f"a fresh process loads the folder and computes what the model cut in memory does; {told}"
    verify_places(written)
    return (
        "a fresh process loads the folder and finds a place for every tensor in its files, by name and shape; what it "
        f"computes was not compared: {reason}"
    )


def _answer(model: nn.Module) -> Answer:
    inputs = sample_inputs(bare(model))
    try:
        answer = Answer.of(model, inputs)
    except Exception as error:  # code of models may need another device, or kernels that are not here
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        raise CheckpointError(f"the model cut in memory does not compute here ({reason})") from error
    answer.check()
    return answer


def _too_large(small: nn.Module, original: int) -> str:
    """Why there is no room to compare what the original, cut in memory, computes; empty where there is."""
    after = bytes_of(small)
    needed = original + after if is_deferred(small) else after  # with its weights, it is in memory already
    there = available_memory()
    if 2 * needed <= there:
        return ""
    return (
        f"that takes {needed / 1e9:.1f} GB for weights alone, more than half of the {there / 1e9:.1f} GB that are free "
        "(--prove, prove=True, compares it all the same)"
    )


def bytes_of(model: nn.Module) -> int:
    """What the weights of a model take in memory."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in model.parameters())
