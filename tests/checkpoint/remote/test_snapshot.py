"""Comparing what models are built of."""

import torch
from torch import nn

from graphprune.checkpoint.remote.snapshot import Snapshot, distinguish, is_plain, same
from tests.decoders import tiny


def test_plain_values_are_what_json_can_hold():
    assert is_plain({"a": [1, (2.5, None)], "b": {"x"}, "c": True})
    assert not is_plain({1: 2})
    assert not is_plain([torch.float32])
    assert not is_plain(nn.Linear(1, 1))


def test_containers_are_the_same_by_what_is_in_them():
    layer = nn.Linear(1, 1)
    assert same({"f": len, 3: layer}, {"f": len, 3: layer})
    assert same((1, [2]), (1, [2]))
    assert not same((1, 2), [1, 2])
    assert not same({"f": len}, {"f": max})
    assert not same([layer], [nn.Linear(1, 1)])
    assert not same(1, True)


def test_a_snapshot_keeps_what_is_changed_in_its_place():
    model = tiny("llama")
    model.table = {"a": 1}
    before = Snapshot(model)
    model.table["a"] = 2
    model.config.num_hidden_layers = 2
    assert before.seen[id(model)].attributes["table"] == {"a": 1}
    assert before.config["num_hidden_layers"] == 3


def test_the_first_difference_is_told():
    assert distinguish(tiny("llama"), tiny("llama", seed=1)) == ""
    other = tiny("llama")
    other.model.layers[1].self_attn.num_key_value_groups = 7
    assert distinguish(other, tiny("llama")) == (
        "'num_key_value_groups' of 'model.layers.1.self_attn' is 7 in one and 2 in the other"
    )
    other = tiny("llama")
    other.lm_head.weight = nn.Parameter(torch.zeros(5, 48))
    assert "'lm_head.weight' has shape (5, 48) in one" in distinguish(other, tiny("llama"))
    other = tiny("llama")
    other.config.rms_norm_eps = 0.5
    assert "'rms_norm_eps' of the config is 0.5 in one" in distinguish(other, tiny("llama"))
    assert "only one has a module 'model.layers.2'" in distinguish(tiny("llama"), tiny("llama", num_hidden_layers=2))
