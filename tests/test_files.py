"""Small files are written whole or not at all."""

from pathlib import Path

import pytest

from graphprune.files import write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "a.txt"
    write_whole(file, "first\n")
    write_whole(file, "zweite Fassung: 3 × 4\n")
    assert file.read_text(encoding="utf-8") == "zweite Fassung: 3 × 4\n"
    assert list(tmp_path.iterdir()) == [file]


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
