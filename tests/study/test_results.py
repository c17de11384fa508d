"""Results of a study."""

import math

import pytest

from graphprune.errors import CheckpointError
from graphprune.report import Measures, Report
from graphprune.study.folder import IndexedCell, ResultsFolder
from graphprune.study.records import CellRecord
from graphprune.study.results import Results
from graphprune.study.schema import Study

STUDY = Study(title="t", vary={"ratio": [0.2, 0.5]})


def at(key, ratio):
    return IndexedCell(key=key, labels={"model": "m", "ratio": str(ratio)}, values={"ratio": ratio}, seed=0, spec={})


@pytest.fixture
def folder(tmp_path):
    folder = ResultsFolder(tmp_path / "out")
    folder.begin()
    folder.write_index(STUDY, (at("a", 0.2), at("b", 0.5), at("a", 0.7)), {}, ["a note"])
    return folder


def test_records_are_in_the_order_of_the_grid_under_its_labels(folder):
    folder.keep(CellRecord(key="b", labels={"model": "m", "ratio": "half"}, seed=0, spec={}))
    folder.keep(CellRecord(key="a", labels={}, seed=0, spec={}))
    found = Results.read(folder.path)
    assert [c.labels["ratio"] for c in found.cells] == ["0.2", "0.5", "0.7"]
    assert [c.values for c in found.cells] == [{"ratio": 0.2}, {"ratio": 0.5}, {"ratio": 0.7}]
    assert found.study == STUDY and found.notes == ("a note",) and "torch" in found.versions
    assert found.scores(found.cells[0]) == {}


def test_what_has_not_been_run_is_counted(folder):
    folder.keep(CellRecord(key="b", labels={}, seed=0, spec={}))
    found = Results.read(folder.path)
    assert len(found.cells) == 1 and found.missing == 2


def test_a_perplexity_without_bound_is_one(folder):
    report = Report(
        model="m",
        before=Measures(parameters=1, weight_bytes=1, sequence_length=1),
        after=Measures(parameters=1, weight_bytes=1, sequence_length=1),
        perplexity_tuned=math.inf,
    )
    log = ({"loss": math.nan, "step": 1.0},)
    folder.keep(CellRecord(key="b", labels={}, seed=0, spec={}, report=report, log=log))
    (cell,) = Results.read(folder.path).cells
    assert cell.report.perplexity_tuned == math.inf and math.isnan(cell.log[0]["loss"])


def test_what_is_no_results_folder_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"no results of a study in .*: expected a folder with results.json"):
        Results.read(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Results.read(tmp_path)
    (tmp_path / "results.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="is damaged"):
        Results.read(tmp_path)


def test_missing_scores_are_said(folder):
    folder.keep(CellRecord(key="b", labels={}, seed=0, spec={}, scores="scores/b.safetensors"))
    found = Results.read(folder.path)
    with pytest.raises(CheckpointError, match=r"the scores in .*b.safetensors cannot be read"):
        found.scores(found.cells[0])
