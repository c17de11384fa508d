"""The text of a study."""

import pytest
import torch

from graphprune.errors import DataError
from graphprune.schema import PruneSpec
from graphprune.study.texts import read_texts


def spec(criterion="taylor", **training):
    usual = {"mode": "none", "batch_size": 4, "sequence_length": 8}
    targets = [{"role": "mlp.channel", "ratio": 0.5}]
    return PruneSpec.model_validate({"targets": targets, "criterion": criterion, "training": {**usual, **training}})


def texts(specs, data, evaluation=None):
    return read_texts(specs, None, 1000, data, evaluation)


ROWS = torch.arange(800).view(100, 8)


def test_every_seed_sees_the_same_sequences_in_an_order_of_its_own():
    found = texts([spec()], ROWS)
    first, second = found.of_seed(0), found.of_seed(1)
    assert len(first) == 95 and len(found.evaluation) == 5
    assert not torch.equal(first.ids, second.ids)
    assert torch.equal(first.ids.sort(dim=0).values, second.ids.sort(dim=0).values)
    assert first.fingerprint == found.of_seed(0).fingerprint != second.fingerprint
    judged = {tuple(row) for row in found.evaluation.ids.tolist()}
    assert judged.isdisjoint(map(tuple, first.ids.tolist()))
    assert found.evaluation.source == "5 sequences held out of train_data"


def test_cells_that_want_more_change_nothing_for_the_others():
    few, many = texts([spec()], ROWS), texts([spec(), spec(mode="joint", steps=20)], ROWS)
    assert few.of_seed(0).fingerprint == many.of_seed(0).fingerprint


def test_where_nothing_reads_text_some_is_read_to_judge_by():
    found = texts([spec("magnitude")], ROWS)
    assert found.train is None and found.of_seed(0) is None and len(found.evaluation) == 5
    assert texts([spec("magnitude")], None).evaluation is None


def test_text_of_ones_own_to_judge_by():
    found = texts([spec()], ROWS, ROWS[:3])
    assert len(found.of_seed(0)) == 100 and len(found.evaluation) == 3


def test_what_is_missing_or_does_not_fit_is_said():
    with pytest.raises(DataError, match="needs text to train and calibrate on, got none"):
        texts([spec()], None)
    with pytest.raises(DataError, match=r"makes 3 sequences; training.batch_size is 4"):
        texts([spec()], ROWS[:3], ROWS)
    with pytest.raises(DataError, match="has the token id 1799"):
        texts([spec()], ROWS + 1000, ROWS)
