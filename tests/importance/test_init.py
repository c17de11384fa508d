"""Criteria are found by name, built-in and third-party, and refuse wrong options in words."""

import sys

import pytest

from graphprune.errors import CriterionError
from graphprune.importance import Criterion, Lora, Taylor, build, criteria
from graphprune.registry import Registry

BUILT_IN = {"gate", "lora", "magnitude", "random", "taylor", "torch_pruning", "wanda"}


def test_the_built_in_criteria():
    assert set(criteria.names()) >= BUILT_IN
    for name in BUILT_IN:
        criterion = criteria.get(name)
        assert criterion.name == name
        assert criterion.reference_url.startswith("https://")
        assert criterion.reference_url in (criterion.__doc__ or ""), "the docstring gives the publication"
        assert isinstance(build(name), Criterion)


def test_a_name_or_a_mapping_as_in_specs():
    assert isinstance(build("lora"), Lora)
    taylor = build({"name": "taylor", "order": "mixed", "average": 0.9})
    assert isinstance(taylor, Taylor)
    assert taylor.options.order == "mixed"


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(CriterionError, match=r"unknown criterion 'taylr'\. Did you mean 'taylor'\?"):
        build("taylr")


def test_every_wrong_option_is_named():
    with pytest.raises(CriterionError) as caught:
        build({"name": "magnitude", "p": -1, "norm": 2, "aggregate": "median"})
    text = str(caught.value)
    assert "criterion 'magnitude' takes p, aggregate" in text
    assert "p: Input should be greater than 0, got -1" in text
    assert "norm: Extra inputs are not permitted, got 2" in text
    assert "aggregate: Input should be 'sum', 'mean'" in text


@pytest.mark.parametrize("wrong", [{"p": 1}, {"name": 3}])
def test_a_criterion_without_a_name(wrong):
    with pytest.raises(CriterionError, match="expected a criterion as a name or"):
        build(wrong)


THIRD_PARTY = '''
from typing import ClassVar
import torch
from graphprune.importance import Criterion, Options, Signal

class LastOptions(Options):
    scale: float = 1.0

class Last(Criterion):
    """Later units are more important."""
    name: ClassVar[str] = "last"
    options_model: ClassVar[type[Options]] = LastOptions
    reference_url: ClassVar[str] = "https://example.org"
    signals = frozenset()

    def score(self, group, seen):
        return torch.arange(group.size) * self.options.scale
'''


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed distribution that registers the criterion `last`, and a registry that has not looked yet."""
    (tmp_path / "other_criteria.py").write_text(THIRD_PARTY)
    info = tmp_path / "other_criteria-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-criteria\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphprune.criteria]\nlast = other_criteria:Last\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(criteria, "_pending", None)
    monkeypatch.setattr(criteria, "_items", dict(criteria._items))
    yield
    sys.modules.pop("other_criteria", None)


def test_a_third_party_criterion_by_entry_point(third_party, toy):
    assert "last" in criteria.names()
    assert "other_criteria" not in sys.modules, "listing names imports nothing"
    criterion = build({"name": "last", "scale": 2.0})
    assert criterion.score(toy.grouped, toy.Seen({})).tolist() == [0.0, 2.0, 4.0]
    with pytest.raises(CriterionError, match="criterion 'last' takes scale"):
        build({"name": "last", "sclae": 2.0})


def test_the_registry_is_for_criteria():
    assert isinstance(criteria, Registry)
    assert criteria.kind == "criterion"
