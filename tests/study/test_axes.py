"""Axes of a study, their labels, and what a value sets."""

import pytest

from graphprune.study.axes import axes_of, in_order, label_of, merged
from graphprune.study.schema import Study


def axis(name, values):
    axes, problems = axes_of(Study(title="t", vary={name: values}))
    assert not problems
    return axes[0]


def laid(spec, name, values, index=0):
    found = axis(name, values)
    return found.laid(spec, found.values[index])


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.5, "0.5"),
        (20, "20"),
        ("lora", "lora"),
        (True, "true"),
        (None, "none"),
        ({"name": "lora", "variant": "reference"}, "lora, variant reference"),
        ({"kind": "cubic", "every": 5}, "kind cubic, every 5"),
        (["mlp.channel", "layer"], "mlp.channel + layer"),
    ],
)
def test_a_value_without_a_label_is_called_by_what_it_is(value, label):
    assert label_of(value) == label


def test_labels_may_be_given():
    values = axis("ratio", {"a fifth": 0.2, "half": 0.5}).values
    assert [(v.label, v.number) for v in values] == [("a fifth", 0.2), ("half", 0.5)]
    assert axis("criterion", ["lora"]).values[0].number is None


def test_a_label_that_is_there_twice_is_refused():
    _, problems = axes_of(Study(title="t", vary={"ratio": [0.5, 0.50]}))
    assert problems == ["vary.ratio: '0.5' is there twice; give every value its own label"]


def test_the_ratio_is_that_of_every_target_in_place_of_another_amount():
    spec = {"targets": [{"role": "a", "count": 1}, {"role": "b", "ratio": 0.1, "layers": 3}]}
    assert laid(spec, "ratio", [0.5]) == {
        "targets": [{"role": "a", "ratio": 0.5}, {"role": "b", "ratio": 0.5, "layers": 3}]
    }
    assert spec["targets"][0] == {"role": "a", "count": 1}  # as it was


def test_short_names_paths_and_keys():
    assert laid({}, "steps", [30]) == {"training": {"steps": 30}}
    assert laid({"lora": {"alpha": 8}}, "lora.r", [4]) == {"lora": {"alpha": 8, "r": 4}}
    assert laid({"targets": [{"role": "a"}, {"role": "b"}]}, "targets.1.layers", ["3:"])["targets"][1] == {
        "role": "b",
        "layers": "3:",
    }
    assert laid({"schedule": {"every": 5}}, "schedule", ["linear"]) == {"schedule": {"every": 5, "kind": "linear"}}
    assert laid({}, "quantization", ["int8"]) == {"quantization": {"kind": "int8"}}


def test_the_mode_without_training_has_two_names():
    assert laid({}, "mode", ["one-shot"]) == {"training": {"mode": "none"}}
    assert axis("mode", ["one-shot"]).values[0].label == "one-shot"


def test_a_criterion_comes_with_its_own_options_only():
    spec = {"criterion": {"name": "lora", "variant": "reference", "average": 0.5}}
    assert laid(spec, "criterion", ["taylor"])["criterion"] == {"name": "taylor", "average": 0.5}
    options = laid(spec, "how", {"other": {"criterion": {"variant": "paper"}}})
    assert options["criterion"] == {"name": "lora", "variant": "paper", "average": 0.5}
    assert laid({"criterion": "taylor"}, "average", [0.1])["criterion"] == {"name": "taylor", "average": 0.1}


def test_parts_of_a_spec_under_a_name_of_ones_own():
    parts = {"wide": {"lora": {"r": 16}, "criterion": "gate"}}
    assert laid({"lora": {"r": 4, "alpha": 8}}, "adapters", parts) == {
        "lora": {"r": 16, "alpha": 8},
        "criterion": {"name": "gate"},
    }


def test_a_name_that_is_no_key_needs_parts_of_a_spec():
    _, problems = axes_of(Study(title="t", vary={"critrion": ["lora"]}))
    assert "vary.critrion: expected a key of a spec, a short name" in problems[0]
    assert problems[0].endswith("'critrion' is no key and 'lora' no part of a spec. Did you mean 'criterion'?")


def test_what_cannot_be_set_is_said():
    with pytest.raises(ValueError, match=r"expected '\*' or one of 1 items in 'targets', got '3'"):
        laid({"targets": [{"role": "a"}]}, "targets.3.ratio", [0.5])
    with pytest.raises(ValueError, match=r"there is nothing to set 'r' in: 'lora' is 3"):
        laid({"lora": 3}, "lora.r", [4])


def test_parts_come_before_keys_and_these_before_places_inside_of_them():
    axes, _ = axes_of(
        Study(title="t", vary={"average": [0.1], "criterion": ["lora"], "own": {"a": {"lora": {"r": 1}}}})
    )
    assert [a.name for a in in_order(axes)] == ["own", "criterion", "average"]


def test_merging_changes_nothing_in_place():
    below = {"training": {"steps": 1}, "targets": [1]}
    assert merged(below, {"training": {"batch_size": 2}, "targets": [2, 3]}) == {
        "training": {"steps": 1, "batch_size": 2},
        "targets": [2, 3],
    }
    assert below == {"training": {"steps": 1}, "targets": [1]}
