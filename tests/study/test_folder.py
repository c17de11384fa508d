"""The folder of a study."""

import json

import pytest

from graphprune.errors import CheckpointError
from graphprune.study.folder import ResultsFolder
from graphprune.study.records import CellRecord
from graphprune.study.schema import Study


def test_a_folder_of_something_else_is_refused(tmp_path):
    ResultsFolder(tmp_path / "new").check()
    ResultsFolder(tmp_path).check()  # empty
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a folder for the results, got the file"):
        ResultsFolder(tmp_path / "file").check()
    with pytest.raises(CheckpointError, match=r"holds other things: .* with the results.json of a study"):
        ResultsFolder(tmp_path).check()


def test_another_version_is_refused_with_the_one_that_wrote_it(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.begin()
    folder.write_index(Study(title="t", vary={"ratio": [0.5]}), (), {}, [])
    folder.check()
    index = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**index, "format": 2, "versions": {"graphprune": "9.1"}}))
    with pytest.raises(CheckpointError, match=r"in format 2, .* writes format 1; .* began it: graphprune 9\.1"):
        folder.check()


def test_records_are_kept_whole(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.begin()
    record = CellRecord(key="a", labels={"model": "m"}, seed=1, spec={"x": 1}, segments={"dense": (1.0, 2.0)})
    folder.keep(record)
    assert folder.cell("a") == record and folder.cell("b") is None and folder.dense("a") is None
    assert [f.name for f in (tmp_path / "cells").iterdir()] == ["a.json"]
