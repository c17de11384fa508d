import pytest
import torch

from graphprune.engine.data import load_blocks
from graphprune.engine.prepare import check_fits, prepare
from graphprune.errors import DataError, SpecError
from graphprune.schema import PruneSpec


class Characters:
    eos_token_id = None

    def __call__(self, text, verbose):
        return {"input_ids": [ord(c) % 61 for c in text]}


def make_spec(mode="joint", criterion="lora", data=None, **training):
    usual = {"mode": mode, "steps": 10, "batch_size": 4, "sequence_length": 16}
    return PruneSpec.model_validate(
        {
            "targets": [{"role": "mlp.channel", "ratio": 0.5}],
            "criterion": criterion,
            "training": {**usual, **training},
            "data": data,
        }
    )


def rows(count, length=16):
    return torch.arange(count * length).view(count, length) % 61


def test_one_sequence_in_twenty_is_held_out():
    found = prepare(make_spec(), train_data=rows(100))
    assert (len(found.train), len(found.evaluation)) == (95, 5)
    assert found.note == "5 sequences held out of train_data"
    again = prepare(make_spec(), train_data=rows(100))
    assert torch.equal(found.evaluation.ids, again.evaluation.ids)


def test_nothing_is_held_out_of_little_data():
    found = prepare(make_spec(batch_size=20), train_data=rows(20))
    assert (len(found.train), found.evaluation) == (20, None)


def test_no_more_is_read_than_the_run_needs():
    assert len(prepare(make_spec(steps=2, calibration_batches=1), train_data=rows(1000)).train) <= 2 * 4 + 64
    one_shot = prepare(make_spec("none", calibration_batches=3), train_data=rows(1000))
    assert len(one_shot.train) + len(one_shot.evaluation) == 3 * 4 + 64
    rounds = prepare(make_spec("none", calibration_batches=3, rounds=5), train_data=rows(1000))
    assert len(rounds.train) + len(rounds.evaluation) == 5 * 3 * 4 + 64


def test_other_text_to_judge_by_leaves_all_for_training(tmp_path):
    (tmp_path / "judge.txt").write_text("a" * 40, encoding="utf-8")
    found = prepare(make_spec(), Characters(), rows(100), tmp_path / "judge.txt")
    assert (len(found.train), len(found.evaluation)) == (100, 2)
    assert found.note.endswith("judge.txt")


def test_the_spec_names_files(tmp_path):
    (tmp_path / "train.txt").write_text("ab" * 200, encoding="utf-8")
    (tmp_path / "judge.txt").write_text("a" * 40, encoding="utf-8")
    data = {"text": str(tmp_path / "train.txt"), "evaluation": str(tmp_path / "judge.txt")}
    found = prepare(make_spec(data=data), Characters())
    assert (len(found.train), len(found.evaluation)) == (25, 2)


def test_a_data_set_is_taken_as_it_is():
    data = load_blocks(rows(5), sequence_length=16)
    examples = torch.utils.data.StackDataset(input_ids=data.ids)
    found = prepare(make_spec(), train_data=examples)
    assert found.train is examples
    assert found.evaluation is None


def test_weights_alone_need_no_data():
    assert prepare(make_spec("none", "magnitude")).train is None


def test_missing_and_short_data_are_errors():
    with pytest.raises(DataError, match=r"training\.mode joint with criterion 'lora' needs text, got none"):
        prepare(make_spec())
    with pytest.raises(DataError, match=r"makes 3 sequences; training\.batch_size is 4"):
        prepare(make_spec(), train_data=rows(3))
    with pytest.raises(DataError, match=r"makes 1 sequences; training\.micro_batch_size is 2"):
        prepare(make_spec("none", micro_batch_size=2), train_data=rows(1))
    with pytest.raises(DataError, match=r"makes 3 sequences; training\.batch_size is 4"):
        prepare(make_spec(), train_data=torch.utils.data.StackDataset(input_ids=rows(3)))


def test_what_the_model_cannot_read_is_an_error(llama):
    spec = make_spec()
    check_fits(prepare(spec, train_data=rows(50)), llama, spec)
    with pytest.raises(DataError, match=r"token id 61; the model's vocabulary has 61 entries"):
        check_fits(prepare(spec, train_data=rows(50) + 1), llama, spec)
    spec = make_spec(sequence_length=65)
    with pytest.raises(SpecError, match="expected at most 64, the positions this model knows"):
        check_fits(prepare(spec, train_data=rows(50, 65)), llama, spec)


def test_scores_at_hand_need_no_text_unless_there_is_some():
    spec = make_spec("none")
    with pytest.raises(DataError, match="needs text, got none"):
        prepare(spec)
    assert prepare(spec, scored=True).train is None
    assert prepare(spec, train_data=rows(100), scored=True).evaluation is not None  # to judge by, as ever
    with pytest.raises(DataError, match="needs text, got none"):
        prepare(make_spec("separate"), scored=True)
