"""``graphprune studies``."""

import pytest

from graphprune.study import studyfile

TEXT = "# a comment\ntitle: Mine\nquestion: Which?\nvary: {ratio: [0.5]}\n"


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text(TEXT)
    monkeypatch.setattr(studyfile.resources, "files", lambda name: tmp_path)


def test_they_are_listed(run, shipped):
    assert run("studies").stdout == "study:mine: Mine\n    Which?\n"


@pytest.mark.parametrize("name", ["mine", "study:mine"])
def test_one_is_printed_as_it_is(name, run, shipped):
    assert run("studies", name).stdout == TEXT


def test_an_unknown_one_is_refused(refused, shipped):
    assert "unknown study. Did you mean 'mine'?" in refused("studies", "min")
