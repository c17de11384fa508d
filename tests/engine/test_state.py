"""The engine's part of a checkpoint: written, read, and a run that goes on from it as from memory."""

import pytest
import torch
from safetensors.torch import load_file

from graphprune.engine.identity import Identity
from graphprune.engine.pruner import Pruner
from graphprune.engine.state import AVERAGES, STATE, WEIGHTS, EngineState
from graphprune.errors import CheckpointError
from graphprune.reshape import reshape
from graphprune.schema import PruneSpec

STEPS = 8


def make_spec(every=2):
    return PruneSpec.model_validate(
        {
            "targets": [{"role": "attention.group", "count": 2}, {"role": "mlp.channel", "ratio": 0.5}],
            "criterion": {"name": "magnitude", "average": 0.9},
            "schedule": {"every": every, "warmup": 0.0, "cooldown": 0.0},
        }
    )


class Noise:
    """A criterion whose scores are new at every step, so that only the average tells what was before."""

    name = "noise"

    def score(self, group, seen):
        return torch.rand(group.size, generator=torch.Generator().manual_seed(hash((group.name, seen)) % 2**31))


def make_pruner(graph, spec=None):
    pruner = Pruner(graph, spec or make_spec(), STEPS)
    pruner.criterion = Noise()
    return pruner


def advance(pruner, steps):
    for step in steps:
        if not pruner.done:
            pruner.score(step, step)
            pruner.advance(step, loss=1.0 / step)
    return pruner


@pytest.fixture
def identity(llama, graph):
    return Identity.of_training(make_spec(), STEPS, graph, llama)


@pytest.mark.parametrize("cut", range(1, STEPS + 1))
def test_a_run_goes_on_from_disk_as_from_memory(cut, graph, llama, identity, tmp_path):
    whole = advance(make_pruner(graph), range(1, STEPS + 1))
    EngineState.of(advance(make_pruner(graph), range(1, cut + 1)), cut, identity, llama).save(tmp_path)
    state = EngineState.load(tmp_path)
    assert state.step == cut
    again = make_pruner(graph)
    state.restore(again)
    advance(again, range(cut + 1, STEPS + 1))
    assert again.plan == whole.plan
    assert again.events == whole.events
    assert again.average.count == whole.average.count
    assert list(again.average.values) == list(whole.average.values)
    for name, value in whole.average.values.items():
        assert torch.equal(again.average.values[name], value)


def test_scores_are_safetensors_and_the_rest_is_json(graph, llama, identity, tmp_path):
    pruner = advance(make_pruner(graph), [1])
    EngineState.of(pruner, 1, identity, llama).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {AVERAGES, STATE, "complete.json"}
    stored = load_file(tmp_path / AVERAGES)
    assert {name: v.shape for name, v in stored.items()} == {g.name: (g.size,) for g in pruner.groups}


def test_what_is_read_belongs_to_nobody_else(graph, llama, identity, tmp_path):
    """The state is a copy: a pruner that goes on does not change what was taken from it."""
    pruner = advance(make_pruner(graph), [1, 2])
    state = EngineState.of(pruner, 2, identity, llama)
    before = {name: value.clone() for name, value in state.averages.items()}
    for value in pruner.average.values.values():
        value.zero_()
    advance(pruner, [3, 4])
    assert all(torch.equal(value, before[name]) for name, value in state.averages.items())
    assert len(state.events) == 1


def test_another_run_is_refused(graph, llama, identity, tmp_path):
    state = EngineState.of(advance(make_pruner(graph), [1]), 1, identity, llama)
    other = Identity.of_training(make_spec(every=3), STEPS, graph, llama)
    with pytest.raises(CheckpointError) as told:
        state.check(other, llama, tmp_path / "checkpoint-1")
    assert str(told.value).splitlines() == [
        f"the checkpoint {tmp_path / 'checkpoint-1'} belongs to another run:",
        "  - schedule.every: expected 2, got 3",
        "Continue it with what it was begun with, or start anew in another place.",
    ]


def test_a_model_that_was_cut_on_the_way_may_have_other_shapes(graph, llama, identity, tmp_path):
    """For a run that makes its model smaller: who resumes it cuts the model to ``compacted`` first."""
    pruner = advance(make_pruner(graph), [1, 2])
    small = reshape(llama, pruner.plan, graph)
    EngineState.of(pruner, 2, identity, small, compacted=pruner.plan).save(tmp_path)
    state = EngineState.load(tmp_path)
    assert state.compacted == pruner.plan
    state.check(Identity.of_training(make_spec(), STEPS, graph, small), small, tmp_path)
    with pytest.raises(CheckpointError, match=r"steps: expected 8, got 9"):
        state.check(Identity.of_training(make_spec(), 9, graph, small), small, tmp_path)


def test_weights_that_were_not_loaded_are_noticed(graph, llama, identity, tmp_path):
    state = EngineState.of(advance(make_pruner(graph), [1]), 1, identity, llama)
    state.check(identity, llama, tmp_path)
    state.save(tmp_path, llama)  # nothing of it is stored there by a Trainer
    with torch.no_grad():
        llama.model.norm.weight.mul_(2.0)
    state.check(identity, llama, tmp_path)  # which loads them
    assert torch.equal(llama.model.norm.weight, torch.ones(32))
    (tmp_path / WEIGHTS).unlink()
    with torch.no_grad():
        llama.model.norm.weight.mul_(2.0)
    with pytest.raises(CheckpointError, match=r"does not have the trained weights of"):
        state.check(identity, llama, tmp_path)


def test_weights_that_the_trainer_stored_are_not_stored_twice(graph, llama, identity, tmp_path):
    llama.save_pretrained(tmp_path)
    EngineState.of(advance(make_pruner(graph), [1]), 1, identity, llama).save(tmp_path, llama)
    assert not (tmp_path / WEIGHTS).exists()


def test_a_state_that_is_none_is_refused(graph, llama, identity, tmp_path):
    from graphprune.engine.marks import mark

    with pytest.raises(CheckpointError, match=r"is no checkpoint to continue from: it has no complete\.json"):
        EngineState.load(tmp_path)
    (tmp_path / STATE).write_text("{}")
    mark(tmp_path)
    with pytest.raises(CheckpointError, match="holds no state of graphprune's engine that this version reads"):
        EngineState.load(tmp_path)


def test_a_full_disk_is_said(graph, llama, identity, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphprune.engine.state.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left on device"):
        EngineState.of(make_pruner(graph), 0, identity, llama).save(tmp_path)
