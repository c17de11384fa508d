"""The folder of an unfinished run: whose it is, who works on it, and when it goes."""

import json
import multiprocessing

import pytest
import torch

from graphprune.engine.identity import Identity
from graphprune.engine.interrupts import Interrupted
from graphprune.engine.marks import mark
from graphprune.engine.run_folder import RunFolder
from graphprune.errors import CheckpointError, DivergedError, NonFiniteError
from graphprune.plan import PrunePlan
from graphprune.schema import PruneSpec

SPEC = PruneSpec.model_validate({"targets": [{"role": "mlp.channel", "ratio": 0.5}], "training": {"steps": 9}})


@pytest.fixture
def identity(llama, graph):
    return Identity.of_run(SPEC, graph, llama, "data")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "small.run")


def checkpoint(folder, step, *, whole=True):
    path = folder.path / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights").write_text("w")
    if whole:
        mark(path)
    return path


def broken(folder, identity, error, *steps):
    """A run that ends in an error after checkpoints of some steps."""
    with folder.held(identity, 9):
        for step in steps:
            checkpoint(folder, step)
        raise error


def begin(folder, identity, *steps):
    with pytest.raises(ZeroDivisionError):
        broken(folder, identity, ZeroDivisionError(), *steps)


def test_nothing_to_continue_leaves_nothing(folder, identity):
    begin(folder, identity)
    assert not folder.path.exists()
    folder.check(SPEC, resume=False)


def test_folders_above_go_too_where_they_were_made_for_it(identity, tmp_path):
    begin(RunFolder(tmp_path / "new" / "deep" / "small.run"), identity)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_kept_and_must_be_resumed(folder, identity):
    begin(folder, identity, 3, 6)
    assert folder.last == folder.path / "checkpoint-6"
    with pytest.raises(CheckpointError, match=r"holds an unfinished run, at step 6 of 9\. Continue it with --resume"):
        folder.check(SPEC, resume=False)
    folder.check(SPEC, resume=True)
    with folder.held(identity, 9):
        assert folder.start() == folder.path / "checkpoint-6"
    folder.remove()
    assert not folder.path.exists()


def test_what_was_half_written_is_cleared_away_before_it_is_written_again(folder, identity):
    begin(folder, identity, 3)
    checkpoint(folder, 6, whole=False)
    assert folder.start() == folder.path / "checkpoint-3"
    assert not (folder.path / "checkpoint-6").exists()


def test_another_spec_is_refused_before_any_model_is_loaded(folder, identity):
    begin(folder, identity, 3)
    other = SPEC.model_copy(update={"seed": 5, "scope": "role"})
    with pytest.raises(CheckpointError, match=r"spec:\n  - scope: expected layer, got role\n  - seed: .* got 5\n"):
        folder.check(other, resume=True)
    with (
        pytest.raises(CheckpointError, match="training data: expected"),
        folder.held(identity.model_copy(update={"data": "x"}), 9),
    ):
        pytest.fail("continued")


def test_somebody_elses_folder_is_left_alone(folder, identity, tmp_path):
    folder.path.mkdir()
    (folder.path / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"has no run\.json, but other files, such as 'thesis\.txt'"):
            folder.check(SPEC, resume=resume)
    (folder.path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        folder.check(SPEC, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        RunFolder(tmp_path / "file").check(SPEC, resume=True)


def test_a_process_killed_at_its_very_beginning_leaves_nothing_in_the_way(folder, identity):
    folder.path.mkdir()
    (folder.path / "lock").write_text("")
    (folder.path / ".run.json.17.partial").write_text("{")
    folder.check(SPEC, resume=False)
    with folder.held(identity, 9):
        assert json.loads((folder.path / "run.json").read_text())["steps"] == 9


def test_a_run_killed_before_its_first_checkpoint_is_in_nobodys_way(folder, identity):
    other = identity.model_copy(update={"data": "other"})
    begin(folder, identity, 3)
    (folder.path / "checkpoint-3" / "complete.json").unlink()
    folder.check(SPEC.model_copy(update={"seed": 4}), resume=False)
    with folder.held(other, 9):
        assert folder.start() is None
        assert json.loads((folder.path / "run.json").read_text())["identity"]["data"] == "other"
    assert not (folder.path / "checkpoint-3").exists()


def _hold(path, identity, ready, leave):
    with RunFolder(path).held(identity, 9):
        ready.set()
        leave.wait(60)


def test_two_processes_do_not_work_on_one_run(folder, identity):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder.path, identity, ready, leave))
    other.start()
    assert ready.wait(60)
    with pytest.raises(CheckpointError, match="another process works on the run"), folder.held(identity, 9):
        pytest.fail("entered")
    other.kill()
    other.join()
    with folder.held(identity, 9):
        pass  # the lock of a killed process is gone


def test_ctrl_c_says_how_to_go_on(folder, identity):
    with pytest.raises(Interrupted, match=r"small\.run is at step 3 of 9\. Continue it with --resume") as told:
        broken(folder, identity, KeyboardInterrupt(), 3)
    assert told.value.exit_code == 130
    with pytest.raises(Interrupted) as told:
        broken(folder, identity, Interrupted("stopped after step 4 of 9", 15), 4)
    assert told.value.exit_code == 143


def test_other_errors_stay_what_they_are_and_the_log_says_how_to_go_on(folder, identity, caplog):
    begin(folder, identity, 3)
    assert "small.run is at step 3 of 9. Continue it with --resume" in caplog.text


def test_numbers_that_break_elsewhere_are_no_divergence(folder, identity):
    """Such as the logits of the final model: to train again would not help."""
    with pytest.raises(NonFiniteError, match=r"^no numbers$"):
        broken(folder, identity, NonFiniteError("no numbers"), 3)
    assert not (folder.path / "diverged.txt").exists()


def test_after_a_divergence_what_tames_it_may_change(folder, identity):
    slower = SPEC.model_copy(update={"training": SPEC.training.model_copy(update={"learning_rate": 1e-6})})
    begin(folder, identity, 3)
    with pytest.raises(CheckpointError, match=r"training\.learning_rate: expected 0\.0001, got 1e-06"):
        folder.check(slower, resume=True)
    with pytest.raises(DivergedError, match=r"broken at step 5\. .*is at step 3 of 9"):
        broken(folder, identity, DivergedError("broken at step 5."))
    folder.check(slower, resume=True)
    with pytest.raises(CheckpointError, match="seed"):
        folder.check(slower.model_copy(update={"seed": 2}), resume=True)


def test_what_one_shot_pruning_found_out_is_kept(folder, identity, graph):
    plan = PrunePlan.remove(graph, {"model.layers.1.mlp/mlp.channel": [0, 3]})
    scores = {"model.layers.1.mlp/mlp.channel": torch.arange(24.0)}
    with folder.held(identity, 9):
        assert folder.pruned() is None
        folder.keep_pruned(plan, scores)
    assert folder.state_of() == "pruned and not yet tuned"
    again, scores_again = folder.pruned()
    assert again == plan
    assert torch.equal(scores_again["model.layers.1.mlp/mlp.channel"], torch.arange(24.0))
    (folder.path / "pruned" / "plan.json").write_text("{}")
    assert folder.pruned() is None


def test_a_half_removed_folder_is_still_known(folder, identity, monkeypatch):
    begin(folder, identity, 3)
    with monkeypatch.context() as broken:
        broken.setattr("shutil.rmtree", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            folder.remove()
    folder.check(SPEC, resume=True)
    folder.remove()
    assert not folder.path.exists()
