"""The registry: collisions refused, typos answered, third-party entries loaded on first use."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from graphprune import registry as registry_module
from graphprune.errors import CriterionError
from graphprune.registry import Registry


@pytest.fixture
def registry(monkeypatch):
    third_party = EntryPoint(name="theirs", value="collections:OrderedDict", group="g")
    monkeypatch.setattr(registry_module, "entry_points", lambda group: [third_party] if group == "g" else [])
    made = Registry[object]("criterion", "g")
    made.register("taylor", "T")
    made.register("magnitude", "M")
    return made


def test_names_include_entry_points_without_importing_them(registry):
    assert registry.names() == ("magnitude", "taylor", "theirs")
    assert "theirs" in registry and list(registry) == list(registry.names())


def test_third_party_items_load_on_first_use(registry):
    import collections

    assert registry.get("theirs") is collections.OrderedDict
    assert registry.load_all()["taylor"] == "T"


def test_unknown_names_get_suggestions(registry):
    message = r"unknown criterion 'tayler'. Did you mean 'taylor' or 'theirs'\? Known: magnitude"
    with pytest.raises(CriterionError, match=message):
        registry.get("tayler")


def test_collisions_are_refused(registry):
    registry.register("taylor", "T")
    with pytest.raises(CriterionError, match="'taylor' is registered twice"):
        registry.register("taylor", "other")
