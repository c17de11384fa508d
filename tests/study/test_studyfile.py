"""Study files."""

import pytest

from graphprune.errors import SpecError
from graphprune.study import studyfile
from graphprune.study.studyfile import dump_study, json_schema, load_study, read_study


def test_it_is_read_and_written_back(written, small):
    study = load_study(small(vary={"ratio": {"a fifth": 0.2}}, measure={"texts": ["a.txt"]}, skip=[{"ratio": "x"}]))
    assert load_study(written(dump_study(study))) == study


def test_problems_have_lines(written):
    file = written("title: t\nseeds: none\nvaried: {ratio: [0.5]}\n")
    with pytest.raises(SpecError) as caught:
        read_study(file)
    assert any(p.startswith("varied (line 3): unknown key. Did you mean 'vary'?") for p in caught.value.problems)
    assert any(p.startswith("vary: expected, but missing") for p in caught.value.problems)
    assert any(p.startswith("seeds (line 2): ") for p in caught.value.problems)


def test_changes_are_laid_over_it(written):
    file = written("title: t\nspec: {training: {steps: 3}}\nvary: {ratio: [0.5]}\n")
    changes = {"seeds": 5, "training.steps": 7, "spec.lora.r": 4, "measure.limit": 3}
    found = read_study(file, changes)
    assert found.study.seeds == (0, 1, 2, 3, 4)
    assert found.study.spec == {"training": {"steps": 7}, "lora": {"r": 4}}
    assert found.study.measure.limit == 3
    assert ("spec", "training", "steps") not in found.lines and ("title",) in found.lines
    again = read_study(found, {"seeds": 1})
    assert again.study.seeds == (0,) and again.study.spec == found.study.spec


def test_what_varies_cannot_be_changed():
    with pytest.raises(SpecError, match=r"training.steps: was to be 3, but the study varies it: axis 'steps' \(1, 2\)"):
        read_study({"title": "t", "vary": {"steps": [1, 2]}}, {"training.steps": 3})


def test_changes_go_by_short_names_and_into_lists():
    study = {"title": "t", "spec": {"targets": [{"role": "a", "count": 1}, {"role": "b"}]}, "vary": {"lora.r": [1]}}
    found = read_study(study, {"ratio": 0.5, "targets.1.layers": "3:", "mode": "joint"}).study.spec
    assert found == {
        "targets": [{"role": "a", "ratio": 0.5}, {"role": "b", "ratio": 0.5, "layers": "3:"}],
        "training": {"mode": "joint"},
    }
    assert study["spec"]["targets"][0] == {"role": "a", "count": 1}


@pytest.mark.parametrize("key", ["series", "across"])
def test_an_axis_that_is_not_there_is_named(key):
    with pytest.raises(SpecError, match=rf"{key}: expected an axis \(ratio\), got 'ration'. Did you mean 'ratio'\?"):
        read_study({"title": "t", "vary": {"ratio": [0.5]}, key: "ration"})


def test_shipped_studies(monkeypatch, tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text("title: Mine\nvary: {ratio: [0.5]}\n")
    monkeypatch.setattr(studyfile.resources, "files", lambda name: tmp_path)
    assert studyfile.studies() == ("mine",)
    assert load_study("study:mine").title == "Mine"
    with pytest.raises(SpecError, match=r"unknown study. Did you mean 'mine'\? Known: mine"):
        load_study("study:mines")
    with pytest.raises(SpecError, match=r"found no such file. There is a study of that name: 'study:mine'"):
        load_study("mine")


def test_every_shipped_study_is_one():
    for name in studyfile.studies():
        assert load_study(f"study:{name}").title


def test_the_schema_is_that_of_the_file():
    assert {"title", "vary", "seeds", "measure"} <= set(json_schema()["properties"])
