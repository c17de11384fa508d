"""Which checkpoints are whole."""

import os

import pytest

from graphprune.engine.marks import MARK, checkpoints, fault, last_checkpoint, mark, step_of


@pytest.fixture
def folder(tmp_path):
    """Three marked checkpoints with a file in a sub-folder, the steps 9, 10 and 100."""
    for step in (9, 10, 100):
        path = tmp_path / f"checkpoint-{step}"
        (path / "inner").mkdir(parents=True)
        (path / "weights").write_bytes(bytes(range(100)))
        (path / "inner" / "more").write_text("more")
        mark(path)
    return tmp_path


def test_the_latest_counts_by_number(folder):
    (folder / "checkpoint-best").mkdir()
    (folder / "checkpoint-7.txt").write_text("")
    assert [step_of(path) for path in checkpoints(folder)] == [100, 10, 9]
    assert last_checkpoint(folder) == folder / "checkpoint-100"
    assert last_checkpoint(folder / "none") is None


def shorten(path):
    os.truncate(path / "weights", 60)


def flip(path):
    (path / "weights").write_bytes(bytes([255, *range(1, 100)]))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: (path / MARK).unlink(), "it has no complete.json"),
        (lambda path: os.truncate(path / MARK, 40), "its complete.json is damaged"),
        (shorten, "its file weights has 60 bytes, expected 100"),
        (flip, "the content of its file weights is not what was written"),
        (lambda path: (path / "inner" / "more").unlink(), "its file inner/more is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(folder, damage, told, caplog):
    damage(folder / "checkpoint-100")
    assert fault(folder / "checkpoint-100").startswith(told)
    assert last_checkpoint(folder) == folder / "checkpoint-10"
    assert f"checkpoint-100 is passed over: {told}" in caplog.text


def test_files_that_come_later_do_no_harm(folder):
    (folder / "checkpoint-100" / "notes.txt").write_text("good one")
    assert fault(folder / "checkpoint-100") is None


def test_a_mark_appears_at_once(folder, monkeypatch):
    """Killed while the mark is being written: there is none, and a later one is not disturbed by the remains."""
    path = folder / "checkpoint-11"
    path.mkdir()
    (path / "weights").write_text("w")

    def killed(*_, **__):
        (path / f".{MARK}.1.partial").write_text("{")
        raise SystemExit

    with monkeypatch.context() as broken:
        broken.setattr("graphprune.engine.marks.write_whole", killed)
        with pytest.raises(SystemExit):
            mark(path)
    assert fault(path) is not None
    mark(path)
    (path / f".{MARK}.1.partial").unlink()
    assert fault(path) is None
