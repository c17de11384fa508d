"""What a run reads: sequences to train and calibrate on, and others, held out, to judge by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset

from graphprune.engine.data import Blocks, check_enough, check_vocabulary, load_blocks
from graphprune.engine.documents import TrainData
from graphprune.engine.modes import needs_data
from graphprune.errors import DataError, SpecError
from graphprune.names import bare
from graphprune.schema import Data, PruneSpec
from graphprune.tasks import predicts_next_token

#: Of the training text, where no other is given to judge by: one sequence in this many, at most so many.
_HELD_OUT_SHARE, _HELD_OUT_MOST = 20, 64
_DATASETS = (str, Path, list, tuple, torch.Tensor)


@dataclass(frozen=True)
class Sequences:
    """The data of a run.

    Attributes:
        train: sequences to train and calibrate on; None where the spec needs none.
        evaluation: sequences for perplexity, none of which is trained on; None where there are none.
        note: where the evaluation text comes from, for the report.
    """

    train: Dataset[Any] | None
    evaluation: Blocks | None
    note: str = ""


def prepare(
    spec: PruneSpec,
    tokenizer: Any = None,
    train_data: TrainData | None = None,
    evaluation: TrainData | None = None,
    *,
    scored: bool = False,
) -> Sequences:
    """Reads no more text than the run needs.

    Args:
        spec: says how much is needed, and where text is if the other arguments do not.
        tokenizer: for text.
        train_data: instead of ``spec.data``: anything :func:`graphprune.engine.data.load_blocks` takes, or a torch
            data set of examples with ``input_ids`` of equal lengths.
        evaluation: instead of ``spec.data.evaluation``. If there is neither, one training sequence in 20 is held
            out, at most 64, where enough are left to train on.
        scored: whether scores are at hand, so that text is needed for training alone.

    Raises:
        DataError: needed text is missing, empty, or too short for one batch.
    """
    given: TrainData | Data | None = train_data if train_data is not None else spec.data
    needed = needs_data(spec) and not (scored and given is None and spec.training.mode == "none")
    train = _train(spec, given, tokenizer) if needed else None
    text = evaluation if evaluation is not None else (spec.data and spec.data.evaluation)
    if text is not None:
        blocks = load_blocks(text, sequence_length=spec.training.sequence_length, tokenizer=tokenizer)
        return Sequences(train, blocks, blocks.source)
    if not isinstance(train, Blocks):
        return Sequences(train, None)
    return held_out(train, least=_batch_size(spec)[0], seed=spec.seed)


def held_out(blocks: Blocks, *, least: int, seed: int) -> Sequences:
    """One sequence in 20, at most 64, is kept to judge by, where at least ``least`` are left to train on."""
    count = min(len(blocks) // _HELD_OUT_SHARE, _HELD_OUT_MOST, len(blocks) - least)
    if count < 1:
        return Sequences(blocks, None)
    train, judged = blocks.split(count, seed)
    return Sequences(train, judged, f"{count} sequences held out of {blocks.source}")


def positions(model: nn.Module) -> int | None:
    """The tokens that the model can read at once, as far as its config says."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def check_purpose(model: nn.Module, spec: PruneSpec, evaluation: object = None) -> None:
    """Refuses to train or judge by text where the model does not predict the next token.

    Args:
        model: its weights are not needed.
        spec: what is wanted.
        evaluation: text to judge by that was given beside the spec, if any.

    Raises:
        SpecError: naming what is left: pruning at once, judged by weights alone.
    """
    model = bare(model)
    if predicts_next_token(model):
        return
    problems = []
    if needs_data(spec):
        problems.append(
            f"training.mode {spec.training.mode} with criterion '{spec.criterion.name}' needs a loss on text, and a "
            f"{type(model).__name__} does not predict the next token. Use training: {{mode: none}} and a criterion "
            "that reads weights alone, such as magnitude"
        )
    if evaluation is not None or (spec.data is not None and spec.data.evaluation is not None):
        problems.append(f"data.evaluation asks for a perplexity, which a {type(model).__name__} does not have")
    if problems:
        raise SpecError(problems)


def check_fits(sequences: Sequences, model: nn.Module, spec: PruneSpec) -> None:
    """Refuses data that the model cannot read, before anything is computed.

    Raises:
        DataError: token ids outside of the vocabulary.
        SpecError: sequences longer than the model's positions.
    """
    most, length = positions(bare(model)), spec.training.sequence_length
    if most is not None and length > most and (sequences.train or sequences.evaluation):
        raise SpecError(
            f"training.sequence_length: expected at most {most}, the positions this model knows "
            f"(max_position_embeddings), got {length}"
        )
    embedding = cast(Any, bare(model)).get_input_embeddings()
    for blocks in (sequences.train, sequences.evaluation):
        if isinstance(blocks, Blocks) and embedding is not None:
            check_vocabulary(blocks, int(embedding.weight.shape[0]))


def sequences_wanted(spec: PruneSpec) -> int:
    """As many as the run reads before it begins anew."""
    wanted = spec.training.rounds * spec.training.calibration_batches * spec.training.micro_batch
    return wanted if spec.training.mode == "none" else max(wanted, spec.training.steps * spec.training.batch_size)


def _train(spec: PruneSpec, data: TrainData | Data | None, tokenizer: Any) -> Dataset[Any]:
    if data is None:
        raise DataError(
            f"training.mode {spec.training.mode} with criterion '{spec.criterion.name}' needs text, got none. "
            "Give train_data, or name a file in the spec's data section."
        )
    size, setting = _batch_size(spec)
    if not isinstance(data, (Data, *_DATASETS)):
        check_enough(cast(Dataset[Any], data), size, setting)
        return cast(Dataset[Any], data)
    blocks = load_blocks(
        data,
        sequence_length=spec.training.sequence_length,
        tokenizer=tokenizer,
        limit=sequences_wanted(spec) + _HELD_OUT_MOST,
    )
    check_enough(blocks, size, setting)
    return blocks


def _batch_size(spec: PruneSpec) -> tuple[int, str]:
    """The sequences without which there is not one step, and the setting that says so."""
    if spec.training.mode == "none":
        return spec.training.micro_batch, "training.micro_batch_size"
    return spec.training.batch_size, "training.batch_size"
