"""What is refused before anything is computed."""

import pytest

from graphprune.engine.original import Source
from graphprune.errors import SpecError
from graphprune.evaluate import Questions
from graphprune.study import checks
from graphprune.study.checks import check_grid, check_questions


@pytest.fixture
def told(cells, tiny):
    """The problems of a study, held against a model."""

    def hold(study, name=tiny, **more):
        with pytest.raises(SpecError) as caught:
            check_grid(cells(study), {"tiny": Source(str(name))}, given=more.get("given", True))
        return caught.value.problems

    return hold


def test_every_problem_once_with_its_cells(told, small):
    small = small(
        vary={
            "targets.*.count": [6, 24],
            "criterion": ["magnitude", "taylor"],
            "length": {"short": {"training": {"sequence_length": 16}}, "long": {"training": {"sequence_length": 200}}},
        },
        seeds=2,
    )
    found = told(small, given=False)
    assert len(found) == 3
    assert found[0].startswith("8 cells (criterion taylor): needs text to train or calibrate on, got none")
    assert found[1].startswith("4 cells (criterion taylor; length long): training.sequence_length: expected at most 64")
    assert found[2].startswith("8 cells (targets.*.count 24): targets[0].count: group 'model.layers.0.mlp/mlp.channel'")


def test_a_quantised_base_has_no_gradients_of_weights(told, small, monkeypatch):
    monkeypatch.setattr(checks, "check_available", lambda *_: None)
    study = small(vary={"criterion": ["taylor", "lora"], "quantization": {"none": None, "int8": "int8"}})
    (problem,) = told(study)
    assert problem.startswith("1 cell (criterion taylor; quantization int8): criterion: 'taylor' needs gradients of")


def test_a_model_that_is_not_there_is_named_beside_the_rest(cells, small, tiny, tmp_path):
    grid = cells(small(vary={"targets.*.count": [24]}), ("tiny", "gone"))
    with pytest.raises(SpecError) as caught:
        check_grid(grid, {"tiny": Source(tiny), "gone": Source(str(tmp_path / "gone"))}, given=True)
    first, second = caught.value.problems
    assert first.startswith("1 cell (model tiny): targets[0].count") and second.startswith(
        "model gone: expected a model"
    )


def test_what_is_measured_has_to_be_readable(told, small):
    measure = {"texts": ["a.txt"], "length": 100, "latency": True, "new_tokens": 64}
    first, second = told(small(vary={"ratio": [0.5]}, measure=measure))
    assert first == "model tiny: measure.length: expected at most 64, the positions it knows, got 100"
    assert second.startswith("model tiny: measure.new_tokens: expected fewer than 64")


def test_cells_that_ask_the_same_are_looked_at_once(cells, small, tiny, monkeypatch):
    looked = []
    monkeypatch.setattr(checks.validate, "check", lambda spec, graph: looked.append(spec))
    check_grid(
        cells(small(vary={"ratio": [0.2, 0.5], "mode": ["none", "joint"]}, seeds=5)), {"tiny": Source(tiny)}, given=True
    )
    assert len(looked) == 2


def test_texts_that_cannot_be_reached_are_named_with_the_local_way(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    check_questions(Questions(texts=(str(tmp_path / "a.txt"),)))
    with pytest.raises(SpecError) as caught:
        check_questions(Questions(texts=("wikitext2", "nowhere.txt")), "my.yaml")
    first, second = caught.value.problems
    assert first.startswith("measure.texts: ") and ("local .jsonl file" in first or "datasets" in first)
    assert second.startswith("measure.texts: expected a text file or one of wikitext2, ptb, got 'nowhere.txt'")
    assert caught.value.source == "my.yaml"
