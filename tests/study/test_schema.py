"""The study file's own rules."""

import pytest
from pydantic import ValidationError

from graphprune.study.schema import Study


def study(**parts):
    return Study.model_validate({"title": "t", "vary": {"ratio": [0.5]}, **parts})


@pytest.mark.parametrize(
    ("models", "by_label"),
    [
        ("owner/name", {"name": "owner/name"}),
        (["a/b/", "c"], {"b": "a/b/", "c": "c"}),
        (["mine=a/b", "yours=c/b"], {"mine": "a/b", "yours": "c/b"}),
        ({"x": "a"}, {"x": "a"}),
    ],
)
def test_models_have_labels(models, by_label):
    assert study(models=models).models == by_label


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValidationError, match=r"two models are called 'b': give them labels, as LABEL=NAME"):
        study(models=["a/b", "c/b"])


def test_seeds_may_be_counted():
    assert study(seeds=3).seeds == (0, 1, 2) and study(seeds=[5]).seeds == (5,)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"ratio": []}, "axis 'ratio': expected at least one value"),
        ({"seed": [1]}, "axis 'seed' is given by 'seeds'"),
        ({"model": ["a"]}, "axis 'model' is given by 'models'"),
    ],
)
def test_axes_that_are_none(vary, message):
    with pytest.raises(ValidationError, match=message):
        study(vary=vary)
