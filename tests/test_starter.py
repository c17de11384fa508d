"""The starter spec: always loads, always fits the graph it was written for."""

import pytest

from graphprune.errors import SelectionError
from graphprune.graph import DependencyGraph, Group
from graphprune.schema import Export, Lora, Schedule, Training
from graphprune.specfile import load_spec
from graphprune.starter import starter_spec
from graphprune.validate import check


def group(role, layer, size, **extra):
    return Group(name=f"block.{layer}/{role}", role=role, layer=layer, size=size, members=(), **extra)


def graph(*groups):
    return DependencyGraph(groups=groups, shapes={}, layers=2)


ORDINARY = [g for n in (0, 1) for g in (group("attention.group", n, 8), group("mlp.channel", n, 2816))]


def written(tmp_path, *groups):
    text = starter_spec(graph(*groups), "some/model")
    (tmp_path / "spec.yaml").write_text(text)
    return text, load_spec(tmp_path / "spec.yaml")


def test_it_names_what_the_model_has_and_validates(tmp_path):
    text, spec = written(tmp_path, *ORDINARY)
    assert "#   attention.group: 2 groups of 8 units, layers 0-1\n" in text
    assert [(t.role, t.ratio, t.multiple_of) for t in spec.targets] == [
        (("attention.group",), 0.25, 1),
        (("mlp.channel",), 0.25, 64),
    ]
    assert check(spec, graph(*ORDINARY)) == []
    assert spec.targets[1].kept(2816) == 2112


def test_its_settings_are_the_defaults_each_with_its_description(tmp_path):
    text, spec = written(tmp_path, *ORDINARY)
    assert (spec.schedule, spec.lora, spec.training, spec.export) == (
        Schedule(),
        Lora(),
        Training(),
        Export(),
    )
    for model in (Schedule, Lora, Training, Export):
        for key, field in model.model_fields.items():
            assert f"\n  {key}: " in text
            assert field.description.split()[0] in text


def test_frozen_and_inexact_groups_are_told_with_their_reasons(tmp_path):
    frozen = group("hidden", None, 64, frozen="every layer\nadds to it")
    inexact = group("mixer.head", 1, 6, exact=False, inexact_reason="a norm runs over it")
    text, spec = written(tmp_path, *ORDINARY, frozen, inexact)
    assert "#   hidden: 1 group of 64 units, outside the layers; must not be pruned\n" in text
    assert "#     every layer adds to it\n" in text
    assert "#     removal is not the same as masking: a norm runs over it\n" in text
    assert "  # - {role: mixer.head, ratio: 0.25}" in text
    assert len(spec.targets) == 2


def test_a_model_with_unusual_roles_only_gets_its_first(tmp_path):
    only = group("mixer.head", 0, 2), group("mixer.state", 0, 16)
    text, spec = written(tmp_path, *only)
    assert [(t.role, t.ratio) for t in spec.targets] == [(("mixer.head",), 0.5)]
    assert check(spec, graph(*only)) == []
    assert "# - {role: mixer.state, ratio: 0.25}" in text


def test_multi_query_attention_loses_query_heads(tmp_path):
    groups = group("attention.group", 0, 1), group("attention.query", 0, 8), group("mlp.channel", 0, 40)
    _, spec = written(tmp_path, *groups)
    assert [t.role for t in spec.targets] == [("attention.query",), ("mlp.channel",)]


def test_a_role_that_is_exact_here_and_inexact_there_is_one_target(tmp_path):
    groups = group("mlp.channel", 0, 40), group("mlp.channel", 1, 40, exact=False, inexact_reason="a norm")
    _, spec = written(tmp_path, *groups)
    assert len(spec.targets) == 1
    assert len(check(spec, graph(*groups))) == 1  # the note about the inexact one


def test_minima_are_respected(tmp_path):
    tight = group("mlp.channel", 0, 8, minimum=7), group("attention.group", 0, 8)
    _, spec = written(tmp_path, *tight)
    assert check(spec, graph(*tight)) == []


def test_a_model_with_nothing_to_prune_is_refused_with_the_reasons():
    with pytest.raises(SelectionError, match="'some/model' has nothing that can be pruned: hidden: the reason"):
        starter_spec(graph(group("hidden", None, 64, frozen="the reason")), "some/model")


def test_sequences_are_no_longer_than_the_model_reads():
    assert "sequence_length: 100\n" in starter_spec(graph(*ORDINARY), "some/model", 100)
    assert "sequence_length: 512\n" in starter_spec(graph(*ORDINARY), "some/model", 4096)
