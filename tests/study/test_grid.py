"""From a study to cells."""

import pytest

from graphprune.errors import SpecError


def test_every_combination_seed_by_seed(cells, small):
    found = cells(small(vary={"criterion": ["lora", "taylor"], "ratio": [0.2, 0.5]}, seeds=2), ("a", "b")).cells
    assert len(found) == 2 * 2 * 2 * 2
    assert [c.seed for c in found] == [0] * 8 + [1] * 8
    first = found[0]
    assert first.labels == {"model": "a", "criterion": "lora", "ratio": "0.2"}
    assert first.values == {"ratio": 0.2}
    assert (first.spec.criterion.name, first.spec.targets[0].ratio, first.spec.seed) == ("lora", 0.2, 0)
    assert str(found[-1]) == "seed 1, b, taylor, 0.5"


def test_the_base_lies_below_and_the_data_beside(cells, small):
    study = small(base="recipe:loraprune", vary={"ratio": [0.2]}, data={"text": "a.txt"})
    del study["spec"]["schedule"], study["spec"]["criterion"]
    (cell,) = cells(study).cells
    assert cell.spec.schedule.every == 10 and cell.spec.criterion.name == "lora"  # the recipe's
    assert cell.spec.training.steps == 3 and len(cell.spec.targets) == 1  # the study's
    assert cell.spec.data.text == "a.txt"


def test_a_random_criterion_has_the_seed_of_its_run(cells, small):
    study = small(vary={"criterion": ["random", {"name": "random", "seed": 7}]}, seeds=[0, 3])
    assert [c.spec.criterion.options["seed"] for c in cells(study).cells] == [0, 7, 3, 7]


def test_cells_are_left_out(cells, small):
    vary = {"criterion": ["lora", "taylor"], "ratio": [0.2, 0.5], "mode": ["one-shot", "joint"]}
    skip = [{"criterion": "taylor", "mode": "joint"}, {"ratio": 0.5, "mode": ["one-shot", "joint"]}]
    assert [str(c) for c in cells(small(vary=vary, skip=skip)).cells] == [
        "seed 0, tiny, lora, 0.2, one-shot",
        "seed 0, tiny, lora, 0.2, joint",
        "seed 0, tiny, taylor, 0.2, one-shot",
    ]


def test_problems_are_told_once_with_their_cells_and_lines(cells, written):
    file = written(
        "title: t\n"
        "spec:\n"
        "  targets: [{role: mlp.channel, ratio: 0.5}]\n"
        "  training:\n"
        "    stepz: 3\n"
        "vary:\n"
        "  criterion: [lora, tailor]\n"
        "  mode:\n"
        "    - none\n"
        "    - joint\n"
    )
    with pytest.raises(SpecError) as caught:
        cells(file)
    told = caught.value.problems
    assert len(told) == 2
    assert told[0].startswith("all cells: training.stepz (line 5): unknown key. Did you mean 'steps'?")
    assert told[1].startswith("6 cells (criterion tailor): criterion (line 7): unknown criterion 'tailor'")
    assert caught.value.source == str(file)


def test_what_contradicts_in_a_mode_names_the_mode(cells, small):
    study = small(vary={"mode": ["one-shot", "joint"], "ratio": [0.2, 0.5]}, seeds=2)
    study["spec"]["training"]["rounds"] = 3
    with pytest.raises(SpecError, match=r"4 cells \(mode joint\): training: rounds are for modes separate and none"):
        cells(study)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"skip": [{"mod": "joint"}]}, r"skip\[0\].mod: no such axis. Did you mean 'mode'\?"),
        ({"skip": [{"mode": "jont"}]}, r"skip\[0\].mode: expected labels of this axis \(none, joint\), got 'jont'"),
        ({"skip": [{"seed": 0}]}, "skip: leaves no cell at all"),
        ({"base": "recipe:nothing"}, "base: recipe:nothing: unknown recipe"),
        ({"spec": {"seed": 3}}, r"spec.seed: the seeds of a study are given by 'seeds'"),
    ],
)
def test_other_refusals(cells, small, parts, message):
    with pytest.raises(SpecError, match=message):
        cells(small(vary={"mode": ["none", "joint"]}, **parts))


def test_a_study_without_models_is_refused(cells, small):
    with pytest.raises(SpecError, match="models: expected at least one model"):
        cells(small(vary={"ratio": [0.5]}), ())


def test_cells_in_words(cells, small):
    grid = cells(small(vary={"criterion": ["lora", "taylor", "gate"], "ratio": [0.2, 0.5]}, seeds=2))
    assert grid.described(grid.cells) == "all cells"
    lora = [c for c in grid.cells if c.labels["criterion"] != "gate"]
    assert grid.described(lora) == "8 cells (criterion lora, taylor)"
    assert grid.described(grid.cells[:1]) == "1 cell (criterion lora; ratio 0.2; seed 0)"
