"""The text of a study: the same sequences for all cells of a model, in an order that is the seed's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from graphprune.engine.data import Blocks, check_enough, check_vocabulary, load_blocks
from graphprune.engine.documents import TrainData
from graphprune.engine.modes import needs_data
from graphprune.engine.prepare import held_out, sequences_wanted
from graphprune.errors import DataError
from graphprune.schema import Data, PruneSpec

#: Sequences that are read, at least, where there are so many: enough for seeds to see different ones.
_POOL = 8192


@dataclass
class Texts:
    """Sequences of one length for one model.

    Attributes:
        train: to train and calibrate on; None where no cell needs any.
        evaluation: to judge by, the same for every seed; None where there is no text for it.
    """

    train: Blocks | None
    evaluation: Blocks | None
    _shuffled: dict[int, Blocks] = field(default_factory=dict, repr=False)

    def of_seed(self, seed: int) -> Blocks | None:
        """The training sequences in the order of a seed, so that seeds calibrate on other ones."""
        if self.train is None:
            return None
        if seed not in self._shuffled:
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
            self._shuffled = {seed: Blocks(self.train.ids[order], self.train.source)}  # cells come seed by seed
        return self._shuffled[seed]


def read_texts(
    specs: Iterable[PruneSpec],
    tokenizer: Any,
    vocabulary: int | None,
    data: TrainData | Data | None,
    evaluation: TrainData | None,
) -> Texts:
    """The text of cells with one sequence length.

    Where no text is given to judge by, a part of the training text is held out, the same for all seeds.

    Args:
        specs: of the cells.
        tokenizer: of the model.
        vocabulary: of the model.
        data: training text, instead of that of the specs.
        evaluation: text to judge by, instead of that of the specs.

    Raises:
        DataError: text is missing, cannot be read, or is too short.
    """
    wanted = list(specs)
    length = wanted[0].training.sequence_length
    readers = [spec for spec in wanted if needs_data(spec)]
    given = data if data is not None else wanted[0].data
    judged = evaluation if evaluation is not None else (wanted[0].data and wanted[0].data.evaluation)
    blocks = None if judged is None else load_blocks(judged, sequence_length=length, tokenizer=tokenizer)
    train = None
    if readers or (blocks is None and given is not None):
        if given is None:
            raise DataError("needs text to train and calibrate on, got none: name it under 'data', or give --text FILE")
        limit = max([_POOL, *map(sequences_wanted, readers)])
        train = load_blocks(given, sequence_length=length, tokenizer=tokenizer, limit=limit)
        least = max([spec.training.batch_size for spec in readers], default=1)
        check_enough(train, least)
        if blocks is None:
            parts = held_out(train, least=least, seed=0)
            assert isinstance(parts.train, Blocks)
            train, blocks = parts.train, parts.evaluation
            if blocks is not None:
                blocks.source = parts.note
    for found in (train, blocks):
        if found is not None and vocabulary is not None:
            check_vocabulary(found, vocabulary)
    return Texts(train if readers else None, blocks)
