"""Where a run writes, and whether it is finished."""

import pytest

from graphprune.engine.places import check_places, is_finished, run_folder
from graphprune.errors import CheckpointError
from graphprune.report import Measures, Report
from graphprune.schema import PruneSpec


def make_spec(mode="joint", **training):
    targets = [{"role": "mlp.channel", "ratio": 0.5}]
    return PruneSpec.model_validate({"targets": targets, "training": {"mode": mode, **training}})


def test_the_state_lies_beside_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(make_spec(), "small").path == tmp_path / "small.run"
    assert run_folder(make_spec("separate"), "deep/small-1.5").path == tmp_path / "deep" / "small-1.5.run"
    assert run_folder(make_spec(), "small", "~/state").path.name == "state"
    assert run_folder(make_spec(), None) is None
    assert run_folder(make_spec(save_every=0), "small") is None
    assert run_folder(make_spec("none"), "small") is None


def test_resume_must_know_what(tmp_path):
    with pytest.raises(CheckpointError, match="expected output or checkpoints"):
        check_places(make_spec(), None, resume=True)
    assert check_places(make_spec(), tmp_path / "small", resume=True).path == tmp_path / "small.run"


@pytest.fixture
def finished(tmp_path):
    """An output that is there, and the state that a process killed right then could not remove."""
    small, state = tmp_path / "small", tmp_path / "small.run"
    small.mkdir()
    state.mkdir()
    (small / "manifest.json").write_text("{}")
    (state / "lock").write_text("")
    measures = Measures(parameters=1, weight_bytes=1, sequence_length=1)
    spec = make_spec().model_dump(mode="json")
    (small / "report.json").write_text(Report(model="m", before=measures, after=measures, spec=spec).to_json())
    return small


def test_a_finished_run_is_known_and_its_state_cleared_away(finished, tmp_path):
    assert not is_finished(tmp_path / "other", make_spec())
    assert is_finished(finished, make_spec(save_every=3))
    assert {entry.name for entry in tmp_path.iterdir()} == {"small"}
    with pytest.raises(CheckpointError, match=r"the run into .*small is finished: load its result with gp\.load"):
        check_places(make_spec(), finished, resume=True)


def test_the_result_of_another_spec_is_told_apart(finished):
    with pytest.raises(CheckpointError, match=r"result of another spec:\n  - training\.steps: expected 200, got 7\n"):
        is_finished(finished, make_spec(steps=7))


def test_what_a_killed_process_left_beside_the_output_is_cleared_away(tmp_path):
    for name in (".small.4194400.partial", ".smaller.4194400.partial", ".small.1.partial"):
        (tmp_path / name).mkdir()
    check_places(make_spec(), tmp_path / "small")
    assert len(list(tmp_path.iterdir())) == 3
    check_places(make_spec(), tmp_path / "small", resume=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {".smaller.4194400.partial", ".small.1.partial"}
