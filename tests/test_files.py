"""Small files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from graphprune.files import flush_all, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_whole(file, "first\n")
    write_whole(file, "zweite Fassung: 3 × 4\n")
    assert file.read_text(encoding="utf-8") == "zweite Fassung: 3 × 4\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_durable_file_is_flushed_before_it_takes_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("graphprune.files.flush", lambda path: flushed.append((path.name, (tmp_path / "a").exists())))
    write_whole(tmp_path / "a", "text", durable=True)
    assert flushed == [(f".a.{os.getpid()}.partial", False), (tmp_path.name, True)]
    monkeypatch.undo()
    write_whole(tmp_path / "a", "again", durable=True)
    assert (tmp_path / "a").read_text() == "again"


def test_a_folder_is_flushed_with_all_that_is_in_it(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("text")
    flush_all(tmp_path / "a")
    flushed = []
    monkeypatch.setattr("graphprune.files.flush", lambda path: flushed.append(path.name))
    flush_all(tmp_path / "a")
    assert sorted(flushed) == sorted(["a", "b", "file", tmp_path.name])


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch, end):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def half(self: Path, text: str, **_: object) -> None:
        with self.open("w") as stream:
            stream.write(text[:3])
        raise end

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(end):
        write_whole(file, "new text")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "a.txt", "")
