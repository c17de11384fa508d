import pytest
import torch
from torch.utils.data import TensorDataset

from graphprune.engine.data import Blocks, check_enough, check_vocabulary, collate, fingerprint, load_blocks
from graphprune.errors import DataError


def test_token_lists_are_packed_as_they_come():
    blocks = load_blocks([[1, 2, 3], [4, 5], [6, 7, 8, 9]], sequence_length=4)
    assert blocks.ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    item = blocks[1]
    assert item["input_ids"].tolist() == item["labels"].tolist() == [5, 6, 7, 8]


def test_a_tensor_of_ids_keeps_its_rows():
    ids = torch.arange(12).view(3, 4)
    assert torch.equal(load_blocks(ids, sequence_length=4).ids, ids)


def test_limit_stops_reading():
    def documents():
        yield [1, 2, 3]
        yield [4, 5, 6]
        raise AssertionError("read on after the limit")

    class Lazy(list):
        def __iter__(self):
            return documents()

    blocks = load_blocks(Lazy([[0]]), sequence_length=2, limit=2)
    assert blocks.ids.tolist() == [[1, 2], [3, 4]]


def test_split_is_disjoint_and_repeatable():
    blocks = load_blocks(torch.arange(40).view(10, 4), sequence_length=4)
    train, held = blocks.split(3, seed=1)
    again, _ = blocks.split(3, seed=1)
    assert len(train) == 7
    assert len(held) == 3
    assert torch.equal(train.ids, again.ids)
    assert sorted(torch.cat([train.ids, held.ids]).flatten().tolist()) == list(range(40))


def test_fingerprint_depends_on_the_data_alone():
    first = load_blocks([[1, 2], [3, 4]], sequence_length=2)
    second = load_blocks(torch.tensor([[1, 2], [3, 4]]), sequence_length=2)
    assert first.fingerprint == second.fingerprint == fingerprint(first)
    assert first.fingerprint != load_blocks([[1, 2], [3, 5]], sequence_length=2).fingerprint
    assert first.fingerprint != load_blocks([[1, 2, 3, 4]], sequence_length=4).fingerprint
    assert len(first.fingerprint) == 64


def test_fingerprint_of_any_data_set():
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}]
    assert fingerprint(rows) == fingerprint([torch.tensor([1, 2, 3]), [4, 5, 6]])
    assert fingerprint(rows) != fingerprint(rows[:1])


@pytest.mark.parametrize("data", [[], [[]], torch.empty(0, 4, dtype=torch.int64)])
def test_nothing_is_an_error(data):
    with pytest.raises(DataError, match=r"train_data is empty: expected text .* got no tokens"):
        load_blocks(data, sequence_length=4, tokenizer=lambda text, verbose: {"input_ids": []})


def test_less_than_one_sequence_is_an_error_with_counts():
    with pytest.raises(DataError, match=r"5 tokens in 2 documents; sequence_length is 8.*lower training\.seq"):
        load_blocks([[1, 2, 3], [4, 5]], sequence_length=8)


def test_less_than_one_batch_is_an_error_with_counts():
    blocks = load_blocks(torch.zeros(3, 4, dtype=torch.int64), sequence_length=4)
    check_enough(blocks, 3)
    with pytest.raises(DataError, match=r"train_data makes 3 sequences; training\.batch_size is 4"):
        check_enough(blocks, 4)
    with pytest.raises(DataError, match="makes 2 sequences"):
        check_enough(TensorDataset(torch.zeros(2, 4)), 4)


def test_ids_outside_of_the_vocabulary_are_an_error():
    blocks = load_blocks([[1, 96, 97]], sequence_length=3)
    check_vocabulary(blocks, 98)
    with pytest.raises(DataError, match=r"token id 97; the model's vocabulary has 97 entries"):
        check_vocabulary(blocks, 97)


def test_collate_stacks_and_labels_default_to_the_inputs():
    batch = collate([{"input_ids": [1, 2], "labels": [-100, 2], "extra": "x"}, {"input_ids": [3, 4]}])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert batch["labels"].tolist() == [[-100, 2], [3, 4]]
    assert set(batch) == {"input_ids", "labels"}


def test_collate_refuses_ragged_examples_and_unknown_ones():
    with pytest.raises(DataError, match="different lengths, 1 to 2 tokens"):
        collate([[1, 2], [3]])
    with pytest.raises(DataError, match=r"needs 'input_ids', got the fields \['text'\]"):
        collate([{"text": "once"}])


def test_blocks_are_a_data_set():
    assert len(Blocks(torch.zeros(2, 4, dtype=torch.int64), "here")) == 2


def test_blocks_are_taken_as_they_are():
    blocks = load_blocks(torch.arange(64).view(4, 16), sequence_length=16)
    assert load_blocks(blocks, sequence_length=16) is blocks
    with pytest.raises(DataError, match=r"in sequences of 16 tokens already; training.sequence_length is 8"):
        load_blocks(blocks, sequence_length=8)
